"""status/training_status.json: what the daemon says about itself, one document with one writer.

Fields are flat and keep their values when a run ends. What is not known is null, never 0 and never NaN.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import durable
from config import Paths
from errors import IntegrityError
from monitoring.evaluation_windows import EvalSample, RecentExample
from monitoring.events import (
    AlertEvent,
    BestCheckpoint,
    CheckpointEvent,
    Event,
    ExampleEvent,
    HeartbeatEvent,
    NoteEvent,
    OutcomeEvent,
    PhaseEvent,
    PlanEvent,
    PublishedEvent,
    StepEvent,
    now,
)
from monitoring.hardware import HardwareMonitor
from monitoring.observation import Thresholds
from monitoring.pattern_heatmap import Heatmap
from monitoring.run_signals import RunSignals
from monitoring.smart_alerts import Alert
from monitoring.trends import Trend

logger = logging.getLogger(__name__)

State = Literal[
    "idle",
    "starting",
    "validating",
    "loading",
    "training",
    "evaluating",
    "publishing",
    "paused",
    "waiting",
    "stopped",
]
"""What the daemon is doing now."""
Status = Literal["idle", "training", "crashed", "completed", "paused", "stopping", "skipping"]
"""The same in the coarser words of older readers; how the last run ended stays until the next begins."""

STALE_INTERVALS = 15
"""A daemon that lives but has written nothing for so many status intervals is stale."""
_AT_ONCE = frozenset(
    {"state", "status", "job_id", "control", "message", "version", "queue", "ledger_trouble"}
    | {"monitor_trouble"}
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ControlStatus(_Part):
    """The last command of a person, and what became of it."""

    command: str
    reason: str | None
    received_at: datetime
    applied_at: datetime | None = None
    step: int | None = None
    message: str | None = None


class QueueStatus(_Part):
    """What waits: jobs by priority, files not complete yet, things that will not be taken."""

    high: int = 0
    normal: int = 0
    low: int = 0
    next_files: tuple[str, ...] = ()
    settling: bool = False
    left_in_place: dict[str, str] = {}
    trouble: str | None = None


class VersionVerdict(_Part):
    """Whether the newest version became current, and why."""

    version: str
    decision: Literal["promote", "hold"]
    reason: str
    reasons: tuple[str, ...] = ()
    """Everything that speaks against it, each with its numbers."""


class TrainingStatus(_Part):
    """The whole document."""

    schema_version: int = 1
    state: State = "idle"
    status: Status = "idle"
    message: str | None = None
    timestamp: datetime = Field(default_factory=now)
    heartbeat_at: datetime = Field(default_factory=now)
    heartbeat_monotonic_seconds: float | None = Field(default_factory=time.monotonic)
    """The same moment in seconds since boot: how old it is does not depend on the wall clock."""
    pid: int = Field(default_factory=os.getpid)
    pid_start_ticks: int | None = Field(default_factory=lambda: start_ticks(os.getpid()))
    status_seconds: float = 2.0

    job_id: str | None = None
    current_file: str | None = None
    version: str | None = None
    """The version that is current."""
    last_verdict: VersionVerdict | None = None
    """Of the version published last; it stays until the next one."""
    control: ControlStatus | None = None
    queue: QueueStatus = QueueStatus()
    ledger_trouble: str | None = None
    """Why the ledger is behind the directories; it catches up by itself."""
    monitor_trouble: str | None = None
    """Why the page and the training API are not served; it is tried again."""
    batch_queue_size: int | None = None
    batch_number: int | None = None

    phase_done: int | None = None
    phase_total: int | None = None
    phase_unit: str | None = None
    eta_seconds: float | None = None
    eta_confidence: Literal["high", "medium", "low"] | None = None

    current_step: int | None = None
    """Optimizer steps over all files of this lineage; total_steps alike."""
    total_steps: int | None = None
    batch_step: int | None = None
    """Optimizer steps in the current file."""
    batch_total_steps: int | None = None
    epoch: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    validation_loss: float | None = None
    val_train_gap: float | None = None
    tokens_per_sec: float | None = None
    tokens_per_sec_avg: float | None = None
    tokens_per_sec_baseline: float | None = None
    throughput_trend: Trend | None = None
    total_tokens: int | None = None
    streaming_ce: float | None = None
    """Moving average of the loss."""
    loss_variance: float | None = None
    loss_trend: Trend | None = None
    token_entropy: float | None = None
    grad_norm: float | None = None
    """Before clipping."""
    lora_stats: dict[str, dict[str, float | int | None]] | None = None
    lora_summary: dict[str, Any] | None = None
    trainable_parameters: int | None = None
    monitoring_overhead: float | None = None
    """Share of this run's training time that close looks at it have taken."""
    epochs_without_improvement: int | None = None
    best_checkpoint: BestCheckpoint | None = None
    train_loss_history: tuple[tuple[int, float], ...] = ()
    """Step and loss, thinned out evenly; all of them are in events.jsonl."""
    accuracy_history: tuple[tuple[int, float], ...] = ()
    """Step and accuracy in percent of the last 20 answers of this run."""

    active_alerts: tuple[Alert, ...] = ()
    alert_summary: dict[str, int] = {}
    memory: dict[str, Any] | None = None
    disk: dict[str, Any] | None = None
    gpu: dict[str, Any] | None = None
    """Null on a machine without one."""
    worker_rss_bytes: int | None = None
    """As the worker last said; null while none runs."""
    max_output_tokens: int | None = None
    context_window: int | None = None

    current_system_prompt: str | None = None
    current_prompt: str | None = None
    golden_answer: str | None = None
    model_answer: str | None = None
    answer_matches: bool | None = None
    recent_examples: tuple[RecentExample, ...] = ()
    total_evals: int = 0
    """Answers of this run that came whole; what follows counts the same ones."""
    total_correct: int = 0
    accuracy_percent: float | None = None
    accuracy_last_20: float | None = None
    accuracy_last_50: float | None = None
    accuracy_trend: Trend | None = None
    eval_samples: tuple[EvalSample, ...] = ()
    eval_failures: int = 0
    """Prompts whose answers did not come whole; they are in no other count."""
    fixed_eval_em: float | None = None
    """Share of exact matches at the last evaluation that answered, from 0 to 1."""
    fixed_eval_ce: float | None = None
    """Nats per assistant token of the held-out records."""
    fixed_eval_ece: float | None = None
    """Expected calibration error of the predicted tokens, from 0 to 1."""
    fixed_eval_trend: Trend | None = None
    pattern_heatmap: Heatmap | None = None
    think_tag_count: int = 0
    think_tag_percent: float | None = None
    current_golden_output_length: int | None = None
    current_model_output_length: int | None = None
    max_golden_output_length: int | None = None
    max_model_output_length: int | None = None

    error_message: str | None = None
    error_type: str | None = None


class StatusWriter:
    """The one writer: merges updates, writes a change of state at once and the rest now and then."""

    def __init__(
        self,
        path: Path,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        hardware: HardwareMonitor | None = None,
        limits: Thresholds | None = None,
        **fields: Any,
    ) -> None:
        """`hardware` is read at each write; `limits` are those of the alerts."""
        self._path = path
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._written_at: float | None = None
        self._cannot_write = False
        self._signals = RunSignals(limits, clock)
        self._hardware = hardware
        self._steps_before = 0
        self._worker_pid: int | None = None
        self.status = TrainingStatus(status_seconds=interval_seconds, **fields)
        """The document as it is now; what is on disk may be `interval_seconds` older."""

    @property
    def worker_pid(self) -> int | None:
        """The process whose memory is shown beside the daemon's; None while no worker runs."""
        return self._worker_pid

    @worker_pid.setter
    def worker_pid(self, pid: int | None) -> None:
        if pid != self._worker_pid:
            self._worker_pid = pid
            self.update(worker_rss_bytes=None)

    def update(self, **fields: Any) -> None:
        """Merge `fields` into the document; what is not named keeps its value."""
        changed = {name for name, value in fields.items() if getattr(self.status, name) != value}
        self.status = self.status.model_copy(update=fields)
        if changed & _AT_ONCE:
            self.write()
        else:
            self.beat()

    def beat(self) -> None:
        """Write the document if the last write is `status_seconds` ago."""
        if self._written_at is None or self._clock() - self._written_at >= self._interval_seconds:
            self.write()

    def write(self) -> None:
        """Write the document now; a full disk is logged once and never ends the daemon."""
        at = now()
        if self._hardware is not None:
            reading = self._hardware.read(self.worker_pid)
            seen = self._signals.look(reading, self.status.worker_rss_bytes)
            self.status = self.status.model_copy(update=seen)
        beat = {"heartbeat_at": at, "heartbeat_monotonic_seconds": time.monotonic()}
        self.status = self.status.model_copy(update={"timestamp": at, **beat})
        self._written_at = self._clock()
        try:
            durable.write_json(self._path, self.status.model_dump(mode="python"), sync=False)
        except OSError as error:
            if not self._cannot_write:
                logger.warning("Cannot write %s: %s", self._path, error.strerror)
            self._cannot_write = True
        else:
            self._cannot_write = False

    def begin_run(self, **fields: Any) -> None:
        """Forget the numbers, answers and alerts of the run before and merge `fields` of the new one."""
        self._steps_before = 0
        nothing = {name: TrainingStatus.model_fields[name].default for name in _OF_A_RUN}
        self.update(**nothing, **self._signals.begin(), **fields)

    def receive(self, command: str, reason: str | None, received_at: datetime) -> None:
        """Show a command of a person that is about to be carried out."""
        control = ControlStatus(command=command, reason=reason, received_at=received_at)
        status = _STATUS_WHILE.get(command) if self.status.status == "training" else None
        self.update(control=control, status=status or self.status.status)

    def acknowledge(self, step: int | None = None, message: str | None = None) -> None:
        """Say that the last command has been carried out, if it is still open."""
        control = self.status.control
        if control is not None and control.applied_at is None:
            applied = {"applied_at": now(), "step": step, "message": message}
            self.update(control=control.model_copy(update=applied))

    def continue_from(self, steps: int) -> None:
        """Count this run's steps on top of those that led to the version it starts from."""
        self._steps_before = steps

    def observe(self, event: Event) -> None:
        """Merge what a worker said, and what follows from it."""
        self.update(**self._signals.observe(event, self.status.current_file))
        match event:
            case HeartbeatEvent():
                self.update(worker_rss_bytes=event.rss_bytes)
            case OutcomeEvent():
                self.update(worker_rss_bytes=None)
            case PhaseEvent():
                state = event.phase
                self.update(
                    state=state, phase_done=event.done, phase_total=event.total, phase_unit=event.unit
                )
            case NoteEvent():
                self.update(message=event.message)
            case PlanEvent():
                self._observe_plan(event)
            case StepEvent():
                self._observe_step(event)
            case ExampleEvent():
                self._observe_example(event)
            case CheckpointEvent() if event.best is not None:
                self.update(best_checkpoint=event.best)
            case PublishedEvent():
                verdict = VersionVerdict(
                    version=event.version, decision=event.decision, reason=event.reason, reasons=event.reasons
                )
                self.update(
                    message=f"{event.version}: {event.decision}, {event.reason}", last_verdict=verdict
                )
            case _:
                self.beat()

    def look_at_suites(self, lost_skills: tuple[str, ...]) -> None:
        """Take a sentence for each suite that the current version answers worse than one before it."""
        self.update(**self._signals.look_at_suites(lost_skills))

    def look_at_monitor(self, trouble: str | None) -> None:
        """Take why the page is not served; None when nothing hinders it."""
        if trouble != self.status.monitor_trouble:
            self.update(monitor_trouble=trouble, **self._signals.look_at_monitor(trouble or ""))

    def take_alerts(self) -> list[AlertEvent]:
        """Return the alerts that began or ended since the last call."""
        return self._signals.take_transitions()

    def _observe_plan(self, event: PlanEvent) -> None:
        self.update(
            batch_step=event.start_step,
            batch_total_steps=event.total_steps,
            current_step=self._steps_before + event.start_step,
            total_steps=self._steps_before + event.total_steps,
        )

    def _observe_step(self, event: StepEvent) -> None:
        self.update(
            batch_step=event.step,
            batch_total_steps=event.total_steps,
            current_step=self._steps_before + event.step,
            total_steps=self._steps_before + event.total_steps,
            epoch=event.epoch,
            loss=event.loss,
            learning_rate=event.learning_rate,
            grad_norm=event.grad_norm,
        )

    def _observe_example(self, event: ExampleEvent) -> None:
        known = self.status
        self.update(
            current_system_prompt=event.system_prompt,
            current_prompt=event.prompt,
            golden_answer=event.golden_answer,
            model_answer=event.model_answer,
            answer_matches=event.answer_matches,
            current_golden_output_length=event.golden_tokens,
            current_model_output_length=event.model_tokens,
            max_golden_output_length=max(event.golden_tokens, known.max_golden_output_length or 0),
            max_model_output_length=max(event.model_tokens, known.max_model_output_length or 0),
        )


_STATUS_WHILE: dict[str, Status] = {"skip": "skipping", "stop": "stopping"}
_OF_A_RUN = (
    *("phase_done", "phase_total", "phase_unit", "eta_seconds", "batch_step", "batch_total_steps"),
    *("epoch", "loss", "learning_rate", "validation_loss", "val_train_gap", "tokens_per_sec"),
    *("tokens_per_sec_avg", "tokens_per_sec_baseline", "throughput_trend", "total_tokens"),
    *("streaming_ce", "loss_variance", "loss_trend", "token_entropy", "grad_norm", "lora_stats"),
    *("lora_summary", "trainable_parameters", "monitoring_overhead", "epochs_without_improvement"),
    *("fixed_eval_em", "fixed_eval_ce", "fixed_eval_ece", "fixed_eval_trend"),
    *("eta_confidence", "best_checkpoint", "error_message", "error_type", "message"),
    *("worker_rss_bytes", "train_loss_history", "accuracy_history", "current_system_prompt"),
    *("current_prompt", "golden_answer", "model_answer", "answer_matches", "recent_examples"),
    *("total_evals", "total_correct", "accuracy_percent", "accuracy_last_20", "accuracy_last_50"),
    *("accuracy_trend", "eval_samples", "eval_failures", "pattern_heatmap", "think_tag_count"),
    *("think_tag_percent", "current_golden_output_length", "current_model_output_length"),
    *("max_golden_output_length", "max_model_output_length"),
)
"""Fields that the next run begins without."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The document as a reader should take it."""

    status: TrainingStatus
    is_running: bool
    """The daemon that wrote it lives."""
    is_stale: bool
    """It claims a daemon at work, but that one is gone or has long said nothing."""


def read_status(paths: Paths) -> Reading | None:
    """Return the document with a judgement of its age; None when no daemon has ever written one.

    Raises IntegrityError when the file is not such a document.
    """
    try:
        status = TrainingStatus.model_validate(durable.read_json(paths.status_file))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise IntegrityError(f"{paths.status_file}: not a status document: {error}") from error
    is_running = status.pid_start_ticks is not None and start_ticks(status.pid) == status.pid_start_ticks
    heard_at = status.heartbeat_monotonic_seconds
    is_silent = heard_at is not None and time.monotonic() - heard_at > STALE_INTERVALS * status.status_seconds
    has_ended = status.state == "stopped"
    return Reading(status, is_running and not has_ended, not has_ended and (not is_running or is_silent))


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot, or None when there is no such process.

    Together with the pid this names one process: pids are used again.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
