"""How often generated answers were right: in all, of late, and which they were."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from monitoring.trends import Trend, judge

SHORT_WINDOW, LONG_WINDOW = 20, 50
TREND_POINTS = 3.0
RECENT_EXAMPLES = 5
EVAL_SAMPLES = 50
THINK_TAG = "<think>"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RecentExample(_Part):
    """One prompt with the answer expected and the answer given."""

    step: int
    current_file: str | None
    system_prompt: str | None
    prompt: str
    golden: str
    model_output: str
    matches: bool
    loss: float | None


class EvalSample(_Part):
    """The same in the words that scripts count accuracy with."""

    step: int
    current_file: str | None
    prompt: str
    golden_answer: str
    model_answer: str
    answer_matches: bool
    loss: float | None


@dataclass(frozen=True, slots=True)
class EvaluationSnapshot:
    """Accuracy in percent; None before the first answer."""

    total_evals: int
    total_correct: int
    accuracy_percent: float | None
    accuracy_last_20: float | None
    """Of the last 20 answers, or of all while there are fewer."""
    accuracy_last_50: float | None
    accuracy_trend: Trend
    """The last 20 answers against all, within 3 points; says something once there are more than 20."""
    recent_examples: tuple[RecentExample, ...]
    eval_samples: tuple[EvalSample, ...]
    think_tag_count: int
    think_tag_percent: float | None
    eval_failures: int
    """Prompts whose answers did not come whole; they count neither as right nor as wrong."""


class EvaluationWindows:
    """Follows the answers of one run."""

    def __init__(self) -> None:
        self._matches: deque[bool] = deque(maxlen=LONG_WINDOW)
        self._total = self._correct = self._thoughts = self._failures = 0
        self._recent: tuple[RecentExample, ...] = ()
        self._samples: deque[EvalSample] = deque(maxlen=EVAL_SAMPLES)

    def observe(self, example: RecentExample) -> None:
        """Take one answer; a loss that is not finite is kept as None."""
        if example.loss is not None and not math.isfinite(example.loss):
            example = example.model_copy(update={"loss": None})
        self._total += 1
        self._correct += example.matches
        self._thoughts += THINK_TAG in example.model_output
        self._matches.append(example.matches)
        self._samples.append(_as_sample(example))
        others = (one for one in self._recent if _identity(one) != _identity(example))
        self._recent = (*others, example)[-RECENT_EXAMPLES:]

    def fail(self) -> None:
        """Take note of an answer that did not come whole."""
        self._failures += 1

    def snapshot(self) -> EvaluationSnapshot:
        """Return what can be said now."""
        overall = _percent(self._correct, self._total)
        newest = list(self._matches)[-SHORT_WINDOW:]
        last_20 = _percent(sum(newest), len(newest))
        return EvaluationSnapshot(
            total_evals=self._total,
            total_correct=self._correct,
            accuracy_percent=overall,
            accuracy_last_20=last_20,
            accuracy_last_50=_percent(sum(self._matches), len(self._matches)),
            accuracy_trend=self._trend(last_20, overall),
            recent_examples=self._recent,
            eval_samples=tuple(self._samples),
            think_tag_count=self._thoughts,
            think_tag_percent=_percent(self._thoughts, self._total),
            eval_failures=self._failures,
        )

    def _trend(self, last: float | None, overall: float | None) -> Trend:
        if last is None or overall is None or self._total <= SHORT_WINDOW:
            return "insufficient_data"
        return judge(last - overall, TREND_POINTS, lower_is_better=False)


def _identity(example: RecentExample) -> tuple[int, str | None, str]:
    return example.step, example.current_file, example.model_output


def _as_sample(example: RecentExample) -> EvalSample:
    return EvalSample(
        step=example.step,
        current_file=example.current_file,
        prompt=example.prompt,
        golden_answer=example.golden,
        model_answer=example.model_output,
        answer_matches=example.matches,
        loss=example.loss,
    )


def _percent(part: int, whole: int) -> float | None:
    return 100 * part / whole if whole else None
