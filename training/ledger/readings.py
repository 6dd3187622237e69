"""What a run folder says about its job: the rows of the ledger, from files alone.

The same files give the same rows, whether they are read at once or while they grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

from config import Paths
from errors import IntegrityError, UsageError
from monitoring.events import (
    BestCheckpoint,
    CheckpointEvent,
    EvaluatedEvent,
    Event,
    HeartbeatEvent,
    OutcomeEvent,
    PlanEvent,
    PublishedEvent,
    StepEvent,
    decode_event,
)
from training.filing import folder_for
from training.jobs import Job, JobStore
from training.ledger.metrics import (
    EvaluationRow,
    MetricBatch,
    StepRow,
    loss_trend,
    perplexity,
    read_trainer_log,
    step_row,
)
from training.ledger.sources import fingerprint, integer, read_config, read_report, section
from training.versions import VersionStore

BATCH_ROWS = 1000
TREND_STEPS = 10
_STATUS_OF_OUTCOME = {
    "completed": "completed",
    "failed": "failed",
    "refused": "failed",
    "skipped": "cancelled",
}


class _Step(NamedTuple):
    loss: float | None
    tokens: int | None
    seconds: float | None


class _Verdict(NamedTuple):
    decision: str | None = None
    reason: str | None = None
    before_loss: float | None = None
    after_loss: float | None = None


class RunReader:
    """Reads one run folder, and later only what has been added to it."""

    def __init__(self, paths: Paths, job_id: str) -> None:
        self._paths = paths
        self._run = paths.run(job_id)
        self.job_id = job_id
        self.job: Job | None = None
        """The job as `read` found it; None when there is none, or its document is damaged."""
        self._sources: str | None = None
        self._config: dict[str, Any] | None = None
        self._report: dict[str, Any] | None = None
        self._offset = 0
        self._started_at: datetime | None = None
        self._heard_at: datetime | None = None
        self._is_paused = False
        self._plan: PlanEvent | None = None
        self._steps: dict[int, _Step] = {}
        self._last_step: StepRow | None = None
        self._evaluations: dict[int, float] = {}
        self._best: BestCheckpoint | None = None
        self._verdict: _Verdict | None = None

    def read(self) -> Iterator[MetricBatch]:
        """Read what is new, and yield the metrics it holds; all of them must be taken before `row` is."""
        self._sources = fingerprint(self._paths, self.job_id)
        try:
            self.job = JobStore(self._paths).get(self.job_id)
        except (IntegrityError, FileNotFoundError):
            self.job = None
        if self.job is None:
            return
        self._config = self._config or read_config(self._run.config_file)
        self._report = self._report or read_report(self._run.report)
        batch = MetricBatch()
        if self._offset == 0:
            batch.cut(0)  # read from the beginning: no row of an earlier reading stays
        for event in self._new_events():
            self._take(event, batch)
            if len(batch) >= BATCH_ROWS:
                yield batch
                batch = MetricBatch()
        if self.job.outcome is not None:
            self._fill_gaps(batch, None)
        yield batch

    def row(self) -> dict[str, Any]:
        """Return the job's row as it follows from all that was read."""
        job = self.job
        assert job is not None, "the run folder has no job"
        numbers = {**self._training_numbers(job), **self._data_numbers(), **self._best_numbers()}
        verdict = self._read_verdict(job)
        is_completed = job.outcome == "completed"
        return {
            "id": job.job_id,
            "number": job.number,
            "file_name": _text(job.name),
            "dataset_path": _dataset_path(self._paths, job),
            "status": self._status(job),
            "outcome": job.outcome,
            "failure_kind": _text(job.failure_kind),
            "error_message": _text(job.message),
            "attempts": job.attempts,
            "version": job.version,
            "config": self._config,
            "created_at": job.claimed_at,
            "started_at": self._started_at,
            "completed_at": job.finished_at,
            "updated_at": job.finished_at or self._heard_at or job.claimed_at,
            **numbers,
            "final_loss": numbers["loss"] if is_completed else None,
            "final_eval_loss": verdict.after_loss if is_completed else None,
            "metadata": {
                "sha256": job.sha256,
                "priority": job.priority,
                "tags": list(job.tags),
                "parent": None if self._plan is None else self._plan.parent,
                "decision": verdict.decision,
                "decision_reason": verdict.reason,
                "before_loss": verdict.before_loss,
            },
            "sources": self._sources if job.state == "finished" else None,
        }

    # Events, and the steps of which none was heard

    def _new_events(self) -> Iterator[Event]:
        """Yield the events not read yet; a line that is torn, damaged or unknown is passed over."""
        if not self._run.events.exists():
            return
        with open(self._run.events, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # half of a line: the rest may come
                self._offset += len(line)
                try:
                    yield decode_event(line)
                except ValueError:
                    continue

    def _take(self, event: Event, batch: MetricBatch) -> None:
        self._started_at = self._started_at or event.at
        if not isinstance(event, HeartbeatEvent):
            self._heard_at = event.at
        match event:
            case PlanEvent():
                self._plan = event
                self._go_back(event.start_step, batch)
            case StepEvent():
                self._add_step(step_row(self.job_id, event), event.seconds, batch)
            case EvaluatedEvent():
                self._add_evaluation(event.step, event.eval_loss, batch)
            case CheckpointEvent():
                self._best = event.best
            case PublishedEvent():
                self._verdict = _Verdict(
                    event.decision, _text(event.reason), event.before_loss, event.after_loss
                )
            case OutcomeEvent():
                self._is_paused = event.outcome == "paused"

    def _go_back(self, step: int, batch: MetricBatch) -> None:
        """Forget what was done after `step`: the run goes on from there and does it again."""
        batch.cut(step)
        self._steps = {number: known for number, known in self._steps.items() if number <= step}
        self._evaluations = {number: loss for number, loss in self._evaluations.items() if number <= step}
        if self._best is not None and self._best.step > step:
            self._best = None
        self._fill_gaps(batch, step)

    def _fill_gaps(self, batch: MetricBatch, up_to: int | None) -> None:
        """Take from the trainer's own log the steps whose events a killed daemon never kept."""
        wanted = up_to if up_to is not None else self._plan.total_steps if self._plan is not None else 0
        if len(self._steps) >= wanted:
            return
        for row, eval_loss in read_trainer_log(self._run.trainer_log, self.job_id):
            if up_to is not None and row["step"] > up_to:
                return
            if eval_loss is None and row["step"] not in self._steps:
                self._add_step(row, None, batch)
            elif eval_loss is not None and row["step"] not in self._evaluations:
                self._add_evaluation(row["step"], eval_loss, batch)

    def _add_step(self, row: StepRow, seconds: float | None, batch: MetricBatch) -> None:
        step = row["step"]
        self._steps[step] = _Step(row["train_loss"], row["tokens"], seconds)
        batch.steps[step] = row
        if seconds is not None or self._last_step is None or step >= self._last_step["step"]:
            self._last_step = row

    def _add_evaluation(self, step: int, loss: float, batch: MetricBatch) -> None:
        self._evaluations[step] = loss
        batch.evaluations[step] = EvaluationRow(
            job_id=self.job_id, step=step, eval_loss=loss, perplexity=perplexity(loss)
        )

    # Columns

    def _status(self, job: Job) -> str:
        if job.outcome is not None:
            return _STATUS_OF_OUTCOME[job.outcome]
        if job.state == "running":
            return "running"
        return "paused" if self._is_paused else "queued"

    def _training_numbers(self, job: Job) -> dict[str, Any]:
        plan, last = self._plan, self._last_step
        step = max(self._steps, default=job.step)
        loss = None if last is None else last["train_loss"]
        eval_loss = self._evaluations[max(self._evaluations)] if self._evaluations else None
        resumed_at = 0 if plan is None else plan.start_step
        return {
            "progress": 100 * step / plan.total_steps if plan and plan.total_steps and step else None,
            "current_step": step,
            "total_steps": None if plan is None else plan.total_steps,
            "current_epoch": self._epoch(step),
            "total_epochs": None if plan is None else plan.epochs,
            "loss": loss,
            "eval_loss": eval_loss,
            "perplexity": perplexity(eval_loss),
            "train_perplexity": perplexity(loss),
            "loss_trend": self._loss_trend(),
            "learning_rate": None if last is None else last["learning_rate"],
            "grad_norm": None if last is None else last["grad_norm"],
            "total_tokens_processed": self._tokens(),
            **self._rates(),
            "resume_from_checkpoint": self._checkpoint_path(resumed_at) if resumed_at else None,
        }

    def _tokens(self) -> int | None:
        return sum(known.tokens or 0 for known in self._steps.values()) if self._steps else None

    def _rates(self) -> dict[str, float | None]:
        """Return means over all steps whose time is known."""
        timed = [(known.tokens or 0, known.seconds) for known in self._steps.values() if known.seconds]
        seconds = sum(duration for _, duration in timed)
        plan = self._plan
        if not timed or plan is None or not plan.steps_per_epoch:
            return {"tokens_per_second": None, "samples_per_second": None}
        records = plan.records + sum(plan.replayed.values())
        samples = len(timed) * records / plan.steps_per_epoch
        return {
            "tokens_per_second": sum(tokens for tokens, _ in timed) / seconds,
            "samples_per_second": samples / seconds,
        }

    def _loss_trend(self) -> str | None:
        if not self._steps:
            return None
        recent = [self._steps[step].loss for step in sorted(self._steps)[-TREND_STEPS:]]
        return loss_trend([loss for loss in recent if loss is not None])

    def _data_numbers(self) -> dict[str, Any]:
        report, config = self._report or {}, self._config or {}
        train = section(config, "train")
        return {
            "model_name": str(section(config, "model").get("base") or "unknown"),
            "total_samples": integer(report, "records_total"),
            "train_samples": integer(report, "accepted"),
            "val_samples": integer(report, "held_out"),
            "batch_size": integer(train, "per_device_train_batch_size"),
            "gradient_accumulation_steps": integer(train, "gradient_accumulation_steps"),
        }

    def _best_numbers(self) -> dict[str, Any]:
        best = self._best
        return {
            "best_checkpoint_score": None if best is None else best.score,
            "best_checkpoint_step": None if best is None else best.step,
            "best_checkpoint_epoch": None if best is None else self._epoch(best.step),
            "best_eval_loss": None if best is None else best.eval_loss,
            "best_checkpoint_path": None if best is None else self._checkpoint_path(best.step),
            "epochs_without_improvement": None if best is None else best.epochs_without_improvement,
        }

    def _epoch(self, step: int | None) -> float | None:
        plan = self._plan
        return (
            None if step is None or plan is None or not plan.steps_per_epoch else step / plan.steps_per_epoch
        )

    def _checkpoint_path(self, step: int) -> str:
        return str(self._run.checkpoint(step).relative_to(self._paths.base))

    def _read_verdict(self, job: Job) -> _Verdict:
        """Return what was decided on the version; its manifest knows where no event told."""
        if self._verdict is not None or job.version is None:
            return self._verdict or _Verdict()
        try:
            facts = VersionStore(self._paths).get(job.version).facts
        except (UsageError, IntegrityError):  # it was deleted, or is damaged
            return _Verdict()
        held_out = facts.held_out
        return _Verdict(
            facts.decision, _text(facts.decision_reason), held_out.before_loss, held_out.after_loss
        )


def _dataset_path(paths: Paths, job: Job) -> str:
    is_filed = job.state == "finished" and job.outcome is not None
    folder = folder_for(paths, job) if is_filed else paths.processing
    return str((folder / job.place).relative_to(paths.base))


def _text(text: str | None) -> str | None:
    """Return text that every database keeps: none of them likes a zero byte."""
    return None if text is None else text.replace("\0", "\N{REPLACEMENT CHARACTER}")
