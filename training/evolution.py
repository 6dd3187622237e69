"""How a run's answers evolve: the same held-out prompts answered again and again, one file a time.

Answers come by the one greedy path and the one template, losses from the trainer itself, and neither leaves
a trace in what is learned. What that costs is measured and held under a share of the run's time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import durable
from evaluation.fixed_eval import exact_match
from evaluation.pattern_tracker import pattern_of
from monitoring.events import ExampleEvent, FixedEvalEvent, NoteEvent, now
from training.anomalies import Anomalies, Anomaly
from training.daemon_link import DaemonLink
from training.dataset import TokenRows
from training.held_out import AnsweredExample, HeldOutExamples
from training.trainer import RecordLosses

logger = logging.getLogger(__name__)

Occasion = Literal["schedule", "evaluation", "anomaly"]

_FIRST_STEPS = frozenset(
    [
        *(0, 10, 25, 50, 100, 150, 200, 250, 500, 750, 1000, 1500, 2000, 2500, 3000, 4000, 5000),
        *(7500, 10_000, 15_000, 20_000),
    ]
)
ANOMALY_STEPS = 500
"""Anomalies are kept at least so many steps apart."""
COMPARED_CHARACTERS = 1000
"""Comparing texts takes time in proportion to the square of their length."""


def is_scheduled(step: int) -> bool:
    """Tell whether answers are due after `step`: often at first, later each thousandth."""
    return step in _FIRST_STEPS or (step > max(_FIRST_STEPS) and step % 1000 == 0)


def similarity(one: str, other: str) -> float:
    """Return how much two texts have in common, from 0 to 1, by their longest common pieces."""
    one, other = one.strip()[:COMPARED_CHARACTERS], other.strip()[:COMPARED_CHARACTERS]
    return round(SequenceMatcher(None, one, other, autojunk=False).ratio(), 4)


class TimeShare:
    """Holds what something costs under a share of the time that passes from now on."""

    def __init__(self, share: float, clock: Callable[[], float]) -> None:
        self._share = share
        self._clock = clock
        self._began_at = clock()
        self._spent = 0.0
        self.last_seconds = 0.0

    def has_room(self) -> bool:
        """Tell whether one more time, if it costs as much as the last, stays under the share.

        The first time, whose cost nobody knows, there always is.
        """
        return self.holds(self.last_seconds)

    def holds(self, seconds: float) -> bool:
        """Tell whether so much more stays under the share."""
        elapsed = self._clock() - self._began_at
        return self._spent + seconds <= self._share * (elapsed + seconds)

    @contextmanager
    def spend(self) -> Iterator[None]:
        """Count what happens inside."""
        began_at = self._clock()
        yield
        self.last_seconds = self._clock() - began_at
        self._spent += self.last_seconds


class Evolution:
    """Takes the answers of one run when they are due, and keeps them in its folder."""

    def __init__(
        self,
        folder: Path,
        examples: HeldOutExamples,
        link: DaemonLink,
        *,
        max_share: float,
        model_version: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`model_version` names what the run began with."""
        self._folder = folder
        self._examples = examples
        self._link = link
        self._max_share = max_share
        self._model_version = model_version
        self._clock = clock
        self._anomalies = Anomalies()
        self._odd: Anomaly | None = None
        self._taken = self._skipped = 0

    def attach(
        self, losses_of: Callable[[TokenRows, Callable[[], None]], RecordLosses], held_out: TokenRows | None
    ) -> None:
        """Take losses from ``losses_of(rows, on_batch)``, of the rows of the examples."""
        self._losses_of = losses_of
        self._held_out = held_out
        self._rows = None if held_out is None else held_out.of_lines(self._examples.lines)

    def begin(self, step: int) -> None:
        """Begin to count time, and take the answers that are due before anything is learned.

        Those of the step where a run was paused are due as well: a command does not wait for answers.
        """
        kept = [int(path.stem.rpartition("_")[2]) for path in self._folder.glob("anomaly_step_*.json")]
        self._anomaly_step = max(kept, default=-ANOMALY_STEPS)
        self._time = TimeShare(self._max_share, self._clock)
        if is_scheduled(step) and not self._file(step, None).exists():
            self._take(step, "schedule")

    def after_step(self, step: int, loss: float, *, is_evaluated: bool) -> None:
        """Take the answers if they are due; leave that to the evaluation if one follows."""
        odd = self._anomalies.of_step(loss)
        self._odd = odd if step - self._anomaly_step >= ANOMALY_STEPS else None
        if is_evaluated or self._link.command is not None:
            return
        if is_scheduled(step):
            self._take(step, "schedule")
        elif self._odd is not None:
            self._take(step, "anomaly")

    def after_evaluation(
        self, step: int, eval_loss: float, *, is_last: bool, losses: RecordLosses | None = None
    ) -> None:
        """Take the answers and tell the daemon of them; those of the last evaluation whatever they cost.

        `losses` are those of all held-out rows, as evaluated.
        """
        odd = self._anomalies.of_evaluation(eval_loss)
        if self._odd is None and step - self._anomaly_step >= ANOMALY_STEPS:
            self._odd = odd
        answers = [*self._take(step, "evaluation", must=is_last)]
        answers += self._take_further(answers, losses)
        for answer in answers:
            self._tell(step, answer)
        self._tell_fixed_eval(step, answers, losses)
        if is_last and self._taken:
            logger.info("Kept the answers of %d steps, skipped %d times", self._taken, self._skipped)

    def _take_further(
        self, shown: Sequence[AnsweredExample], losses: RecordLosses | None
    ) -> list[AnsweredExample]:
        """Answer prompts that are only counted, batch by batch, as long as the share of the time holds.

        What a batch will take is estimated from the one before; the first from those that are shown.
        """
        answers: list[AnsweredExample] = []
        seconds_each = self._time.last_seconds / len(shown) if shown else 0.0
        shown_seconds = self._time.last_seconds
        by_line = {} if losses is None or self._held_out is None else _by_line(self._held_out, losses)
        for numbers in self._examples.further() if shown or not self._examples.lines else []:
            if self._link.command is not None or not self._time.holds(seconds_each * len(numbers)):
                break
            with self._time.spend():
                answers += self._examples.answer_further(numbers, by_line)
            seconds_each = self._time.last_seconds / len(numbers)
            self._link.beat()
        self._time.last_seconds = shown_seconds  # what the next time of those shown is expected to take
        return answers

    def _take(self, step: int, occasion: Occasion, *, must: bool = False) -> Sequence[AnsweredExample]:
        """Answer the prompts and write what came; return nothing where that would take too long."""
        if not self._examples.lines:
            return ()
        if not (must or self._time.has_room()):
            self._skip()
            return ()
        with self._time.spend():
            answers = self._examples.answer(self._losses())
        self._taken += 1
        odd_answers = self._anomalies.of_answers(answers)
        if self._odd is None and step - self._anomaly_step >= ANOMALY_STEPS:
            self._odd = odd_answers
        if occasion != "anomaly":
            self._write(step, answers, occasion, None)
        if self._odd is not None:
            self._write(step, answers, occasion, self._odd)
            self._anomaly_step, self._odd = step, None
        return answers

    def _skip(self) -> None:
        self._skipped += 1
        if self._skipped == 1:
            message = (
                f"answering held-out prompts takes {self._time.last_seconds:.1f} s a time; it is left out "
                f"where that would be more than {100 * self._max_share:g} % of the run's time "
                "(evaluation.max_share), except at the end"
            )
            self._link.emit(NoteEvent(message=message))

    def _losses(self) -> dict[int, float]:
        if self._rows is None or not len(self._rows):
            return {}
        return _by_line(self._rows, self._losses_of(self._rows, self._link.beat))

    def _tell(self, step: int, answer: AnsweredExample) -> None:
        self._link.emit(
            ExampleEvent(
                step=step,
                system_prompt=answer.system_prompt,
                prompt=answer.prompt,
                golden_answer=answer.golden,
                model_answer=answer.answer,
                answer_matches=answer.matches,
                golden_tokens=answer.golden_tokens,
                model_tokens=answer.answer_tokens,
                loss=answer.loss,
                error=answer.error,
                correct=answer.correct,
                grader=answer.grader,
                pattern=pattern_of(answer.prompt),
            )
        )

    def _tell_fixed_eval(
        self, step: int, answers: Sequence[AnsweredExample], losses: RecordLosses | None
    ) -> None:
        calibration = None if losses is None else losses.calibration
        if calibration is None and not answers:
            return
        matches = tuple(answer.is_exact for answer in answers)
        self._link.emit(
            FixedEvalEvent(
                step=step,
                em=exact_match(matches),
                ce=None if losses is None or calibration is None else losses.mean,
                ece=None if calibration is None else calibration.error,
                tokens=0 if calibration is None else calibration.tokens,
                matches=matches,
            )
        )

    def _write(
        self, step: int, answers: Sequence[AnsweredExample], occasion: Occasion, anomaly: Anomaly | None
    ) -> None:
        path = self._file(step, anomaly)
        durable.make_folder(self._folder)
        durable.write_json(
            path,
            {
                "schema_version": 1,
                "snapshot_id": path.stem,
                "training_step": step,
                "timestamp": now(),
                "model_version": self._model_version,
                "occasion": occasion,
                "anomaly": None if anomaly is None else asdict(anomaly),
                "seconds": round(self._time.last_seconds, 3),
                "skipped": self._skipped,
                "examples": [_described(step, answer) for answer in answers],
                "summary": _summary(answers),
            },
        )

    def _file(self, step: int, anomaly: Anomaly | None) -> Path:
        return self._folder / f"{'step' if anomaly is None else 'anomaly_step'}_{step:06d}.json"


def _by_line(rows: TokenRows, losses: RecordLosses) -> dict[int, float]:
    """Return nats per trained token by line; a record that was split has several rows."""
    totals: dict[int, tuple[float, int]] = {}
    for line, loss, weight in zip(rows.lines, losses.sums, losses.weights, strict=True):
        total, count = totals.get(line, (0.0, 0))
        totals[line] = total + loss, count + weight
    return {line: total / count for line, (total, count) in totals.items()}


def _described(step: int, answer: AnsweredExample) -> dict[str, Any]:
    return {
        "example_id": answer.example_id,
        "step": step,
        "input": answer.prompt,
        "expected_output": answer.golden,
        "model_output": answer.answer,
        "loss": answer.loss,
        "exact_match": answer.matches,
        "grader": answer.grader,
        "correct": answer.correct,
        "output_length": answer.answer_tokens,
        "similarity": similarity(answer.answer, answer.golden),
        "error": answer.error,
    }


def _summary(answers: Sequence[AnsweredExample]) -> dict[str, Any]:
    """Count the answers; `accuracy` is the share of those that came whole, from 0 to 1."""
    losses = [answer.loss for answer in answers if answer.loss is not None]
    whole = [answer for answer in answers if answer.error is None]
    correct = sum(answer.matches for answer in whole)
    return {
        "avg_loss": fmean(losses) if losses else None,
        "accuracy": correct / len(whole) if whole else None,
        "total_examples": len(answers),
        "correct": correct,
        "incorrect": len(whole) - correct,
        "failed": len(answers) - len(whole),
    }
