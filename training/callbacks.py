"""What happens between the steps of a run: evaluate, checkpoint, report, obey."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

import durable
from config import Config, RunPaths, TrainConfig
from monitoring.events import (
    BestCheckpoint,
    CheckpointEvent,
    EvaluatedEvent,
    NoteEvent,
    SignalsEvent,
    StepEvent,
)
from training import checkpoints
from training.checkpoint_scorer import CheckpointHistory, ScoredCheckpoint, ScoreWeights
from training.checkpoints import Checkpoint, CheckpointFacts
from training.daemon_link import DaemonLink
from training.early_stopping import EarlyStopping, StoppingRule, StoppingState
from training.evolution import Evolution
from training.model import Precision
from training.trainer import PlannedTrainer

logger = logging.getLogger(__name__)

EVALUATIONS_PER_RUN = 4


def evaluation_steps(total_steps: int, eval_steps: int) -> frozenset[int]:
    """Return the steps after which a run evaluates and saves: often enough, and always at its end."""
    interval = max(1, min(eval_steps, total_steps // EVALUATIONS_PER_RUN))
    return frozenset(range(interval, total_steps + 1, interval)) | {total_steps}


class TrainerLog:
    """``trainer_log.jsonl`` of a run, with the keys that LLaMA-Factory's viewers read."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._start = clock()
        self._start_step = 0

    def cut_back(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run logs it again."""
        self._start, self._start_step = self._clock(), step
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_bytes().splitlines():
            try:
                is_kept = orjson.loads(line)["current_steps"] <= step
            except orjson.JSONDecodeError:
                break  # torn by a crash
            if is_kept:
                kept.append(line)
        durable.write_bytes(self._path, b"".join(line + b"\n" for line in kept))

    def write(self, state: TrainerState, numbers: dict[str, float | int]) -> None:
        """Append one line for the step the run is at."""
        elapsed = self._clock() - self._start
        done = state.global_step - self._start_step
        left = elapsed / done * (state.max_steps - state.global_step) if done else None
        line = {
            "current_steps": state.global_step,
            "total_steps": state.max_steps,
            **numbers,
            "epoch": round(state.epoch or 0.0, 4),
            "percentage": round(100 * state.global_step / state.max_steps, 2),
            "elapsed_time": str(timedelta(seconds=int(elapsed))),
            "remaining_time": None if left is None else str(timedelta(seconds=int(left))),
        }
        durable.append_line(self._path, orjson.dumps(line))


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Translates the Trainer's hooks into checkpoints, log lines and events.

    Evaluations and checkpoints come at the same, planned steps, so that every checkpoint that may become
    a version has been scored. A command is obeyed at the next step boundary by a checkpoint of its own,
    which is no candidate: where a run was paused must not change what it ends in.
    """

    def __init__(
        self,
        run: RunPaths,
        config: Config,
        precision: Precision,
        link: DaemonLink,
        evolution: Evolution | None = None,
    ) -> None:
        """`evolution` has held-out prompts answered now and then."""
        self._run = run
        self._config = config.train
        self._scoring = config.scoring
        self._precision = precision
        self._link = link
        self._evolution = evolution
        self._log = TrainerLog(run.trainer_log)
        self._steps: frozenset[int] = frozenset()
        self._step_started = 0.0
        self._seconds = 0.0
        # Of this process, without its first step, which allocates what the others reuse.
        self._is_warm = False
        self._busy_seconds = 0.0
        self._busy_tokens = 0
        self._eval_loss: float | None = None
        self._train_loss: float | None = None
        self._scored: ScoredCheckpoint | None = None
        self._window_sum = 0.0
        self._window_weight = 0
        self._stopping = _early_stopping(config.train, None)
        self.tokens = 0

    def attach(self, trainer: PlannedTrainer, start: CheckpointFacts | None) -> None:
        """Report on `trainer`, which goes on from `start` or begins."""
        self._trainer = trainer
        self._history = CheckpointHistory(
            (known.scored for known in checkpoints.list_checkpoints(self._run.folder) if known.scored),
            ScoreWeights(
                eval_loss=self._scoring.eval_loss_weight,
                gap=self._scoring.gap_weight,
                perplexity=self._scoring.perplexity_weight,
                improvement=self._scoring.improvement_weight,
            ),
        )
        if start is not None:
            self.tokens = start.tokens
            self._window_sum, self._window_weight = start.window_sum, start.window_weight
            self._stopping = _early_stopping(self._config, start.early_stopping)
            self._announce(start)  # the daemon may have missed it
            trainer.micro_batch = min(trainer.micro_batch, start.micro_batch)
        self._micro_batch = trainer.micro_batch
        if self._evolution is not None:
            self._evolution.attach(trainer.record_losses, trainer.held_out)

    @property
    def stopped_early(self) -> str | None:
        """Why the run is over before its planned steps, or None."""
        return None if self._stopping is None else self._stopping.reason

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._steps = evaluation_steps(state.max_steps, self._config.eval_steps)
        self._log.cut_back(state.global_step)
        if self._evolution is not None:
            self._evolution.begin(state.global_step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._step_started = time.monotonic()
        if self._trainer.live is not None:
            self._trainer.live.begin_step(state.global_step + 1)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._seconds = time.monotonic() - self._step_started
        numbers = self._trainer.last_step
        assert numbers is not None
        self._tell_of_short_memory()
        self._tell_of_sample(state.global_step)
        self.tokens += numbers.tokens
        if self._is_warm:
            self._busy_tokens += numbers.tokens
            self._busy_seconds += self._seconds
        self._is_warm = True
        self._window_sum += numbers.loss * numbers.weight
        self._window_weight += numbers.weight
        self._eval_loss = self._train_loss = self._scored = None
        is_planned = state.global_step in self._steps
        is_evaluated = is_planned and self._trainer.held_out is not None
        if self._evolution is not None:
            self._evolution.after_step(state.global_step, numbers.loss, is_evaluated=is_evaluated)
        # Read last, so that what came meanwhile is obeyed at this step.
        command = self._link.command
        control.should_save = is_planned or command in ("pause", "stop")
        control.should_evaluate = is_evaluated and command is None
        control.should_training_stop |= command is not None

    def _tell_of_short_memory(self) -> None:
        size = self._trainer.micro_batch
        if size < self._micro_batch:
            message = f"memory was short: {self._micro_batch} records in one pass are now {size}"
            self._link.emit(NoteEvent(message=f"{message}; what is learned stays the same"))
            self._micro_batch = size

    def _tell_of_sample(self, step: int) -> None:
        live = self._trainer.live
        sample = None if live is None else live.end_step(step, self._seconds)
        if sample is not None:
            self._link.emit(
                SignalsEvent(step=step, monitoring_overhead=round(sample.overhead, 6), **sample.fields)
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        if "eval_loss" in logs:
            self._log.write(state, {"eval_loss": logs["eval_loss"]})
        elif "loss" in logs:
            self._report_step(state, logs["learning_rate"])

    def _report_step(self, state: TrainerState, learning_rate: float) -> None:
        numbers = self._trainer.last_step
        assert numbers is not None
        line = {"loss": numbers.loss, "lr": learning_rate, "total_tokens": self.tokens}
        if self._busy_seconds:
            line["throughput"] = round(self._busy_tokens / self._busy_seconds, 2)
        self._log.write(state, line)
        self._link.emit(
            StepEvent(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=state.epoch or 0.0,
                loss=numbers.loss,
                learning_rate=learning_rate,
                grad_norm=numbers.grad_norm,
                tokens=numbers.tokens,
                seconds=self._seconds,
            )
        )

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        self._eval_loss = metrics["eval_loss"]
        self._close_window()
        self._scored = self._score(state, metrics)
        if self._stopping is not None:
            value = self._scored.score if self._config.early_stopping_metric == "score" else self._eval_loss
            control.should_training_stop |= self._stopping.observe(state.global_step, value) is not None
        if self._evolution is not None:
            is_last = control.should_training_stop or state.global_step == state.max_steps
            self._evolution.after_evaluation(
                state.global_step,
                metrics["eval_loss"],
                is_last=is_last,
                losses=self._trainer.last_evaluation,
            )
        if (self._run.checkpoint(state.global_step) / durable.MANIFEST).is_file():
            # The evaluation was still owed when the run was paused here.
            self._seal(state)

    def _score(self, state: TrainerState, metrics: dict[str, float]) -> ScoredCheckpoint:
        """Score this evaluation, once and for ever, and tell of it."""
        held_out = self._trainer.held_out
        assert held_out is not None
        scored = self._history.add(
            state.global_step,
            metrics["eval_loss"],
            self._train_loss,
            epoch=state.epoch,
            eval_standard_error=metrics["eval_standard_error"],
        )
        document = scored.to_json()
        logger.info(
            "Scored step=%d score=%s parts=%s eval_loss=%s train_loss=%s",
            *(scored.step, document["score"], document["parts"], scored.eval_loss, scored.train_loss),
        )
        self._link.emit(
            EvaluatedEvent(
                step=scored.step,
                eval_loss=metrics["eval_loss"],
                records=len(held_out),
                tokens=int(metrics["eval_tokens"]),
                seconds=metrics["eval_seconds"],
                train_loss=scored.train_loss,
                score=document["score"],
                parts=document["parts"],
                epochs_without_improvement=scored.epochs_without_improvement,
            )
        )
        return scored

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step in self._steps and self._trainer.held_out is None:
            self._close_window()
        self._seal(state)
        checkpoints.rotate(self._run.folder, self._config.save_total_limit, self._scoring.selection)

    def _close_window(self) -> None:
        """Take the mean over the tokens trained since the last time."""
        if self._window_weight:
            self._train_loss = self._window_sum / self._window_weight
        self._window_sum, self._window_weight = 0.0, 0

    def _seal(self, state: TrainerState) -> None:
        facts = CheckpointFacts(
            step=state.global_step,
            epoch=state.epoch or 0.0,
            tokens=self.tokens,
            precision=self._precision,
            micro_batch=self._trainer.micro_batch,
            eval_loss=self._eval_loss,
            train_loss=self._train_loss,
            is_candidate=state.global_step in self._steps,
            window_sum=self._window_sum,
            window_weight=self._window_weight,
            early_stopping=None if self._stopping is None else self._stopping.state.to_json(),
        )
        folder = self._run.checkpoint(state.global_step)
        checkpoints.seal(folder, facts, self._scored)
        logger.info("Saved checkpoint step=%d eval_loss=%s", facts.step, facts.eval_loss)
        self._announce(facts)

    def _announce(self, facts: CheckpointFacts) -> None:
        """Tell of a checkpoint, and of the best one of all that are there."""
        known = checkpoints.list_checkpoints(self._run.folder, verify=False)
        best = checkpoints.best(known, self._scoring.selection)
        without = self._history.scored[-1].epochs_without_improvement if self._history.scored else None
        self._link.emit(
            CheckpointEvent(
                step=facts.step,
                path=str(self._run.checkpoint(facts.step)),
                eval_loss=facts.eval_loss,
                best=None if best is None else _described(best, without),
            )
        )


def _described(best: Checkpoint, epochs_without_improvement: int | None) -> BestCheckpoint:
    return BestCheckpoint(
        step=best.facts.step,
        path=str(best.folder),
        epoch=best.facts.epoch,
        eval_loss=best.facts.eval_loss,
        score=None if best.scored is None else best.scored.to_json()["score"],
        epochs_without_improvement=epochs_without_improvement,
    )


def _early_stopping(config: TrainConfig, seen: dict[str, Any] | None) -> EarlyStopping | None:
    if not config.early_stopping_patience:
        return None
    rule = StoppingRule(
        config.early_stopping_patience, config.early_stopping_metric, config.early_stopping_threshold
    )
    return EarlyStopping(rule, None if seen is None else StoppingState.from_json(seen))
