"""The language in which a worker speaks to the daemon: one JSON object a line on a pipe of its own.

The last event of a worker is always an `OutcomeEvent`; a worker that ends without one has crashed.
"""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Phase = Literal["starting", "validating", "loading", "training", "evaluating", "publishing"]
Outcome = Literal["completed", "refused", "paused", "stopped", "skipped", "failed", "waiting"]


def now() -> datetime:
    """Return the wall-clock time, for display only; durations and order never come from it."""
    return datetime.now(UTC)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")

    at: datetime = Field(default_factory=now)


class HeartbeatEvent(_Event):
    """The worker lives; sent at least every few seconds by a thread that watches for progress."""

    event: Literal["heartbeat"] = "heartbeat"
    rss_bytes: int | None = None


class PhaseEvent(_Event):
    """The worker has begun a phase; `done` and `total` count in `unit` where that is known."""

    event: Literal["phase"] = "phase"
    phase: Phase
    done: int | None = None
    total: int | None = None
    unit: str | None = None


class NoteEvent(_Event):
    """Something a person should read in the log or the status."""

    event: Literal["note"] = "note"
    message: str


class ReportEvent(_Event):
    """The report card is complete."""

    event: Literal["report"] = "report"
    format: str | None
    accepted: int
    refused: int
    held_out: int
    usable: bool


class PlanEvent(_Event):
    """What the run will do; the totals are exact."""

    event: Literal["plan"] = "plan"
    records: int
    epochs: int
    steps_per_epoch: int
    total_steps: int
    tokens_per_epoch: int
    start_step: int = 0
    parent: str | None = None
    trainable_parameters: int | None = None


class StepEvent(_Event):
    """One optimizer update; `loss` is nats per trained token of that step's records."""

    event: Literal["step"] = "step"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens: int
    seconds: float


class SignalsEvent(_Event):
    """What was looked at more closely at one sampled step."""

    event: Literal["signals"] = "signals"
    step: int
    monitoring_overhead: float
    """Share of this run's training time that such looks have taken so far."""
    token_entropy: float | None = None
    """Mean entropy of the predictions of trained tokens, in nats."""
    lora_stats: dict[str, dict[str, float | int | None]] | None = None
    """By module: norms of gradients, updates and factors, effective rank."""
    lora_summary: dict[str, Any] | None = None


class AlertEvent(_Event):
    """An alert began or ended; written by the daemon among the events of the run it concerns."""

    event: Literal["alert"] = "alert"
    kind: Literal["raised", "resolved"]
    severity: str
    category: str
    message: str
    details: dict[str, Any]
    recommendation: str


class EvaluatedEvent(_Event):
    """Held-out loss in nats per assistant token, at a step of the run or for a finished candidate."""

    event: Literal["evaluated"] = "evaluated"
    step: int
    eval_loss: float
    records: int
    tokens: int
    seconds: float | None = None
    train_loss: float | None = None
    """Mean over the tokens trained since the evaluation before."""
    score: float | None = None
    """Lower is better; null where it could not be scored."""
    parts: dict[str, float | None] | None = None
    epochs_without_improvement: int | None = None


class ExampleEvent(_Event):
    """One held-out prompt with its expected and its generated answer."""

    event: Literal["example"] = "example"
    step: int
    system_prompt: str | None
    prompt: str
    golden_answer: str
    model_answer: str
    answer_matches: bool
    golden_tokens: int
    model_tokens: int
    loss: float | None = None
    """Nats per trained token of the expected answers of this conversation."""
    error: str | None = None
    """Why there is no whole answer."""
    correct: bool | None = None
    """As its grader judges it; null where there is no whole answer."""
    grader: str | None = None
    pattern: str | None = None
    """The kind of thing the prompt asks for."""


class FixedEvalEvent(_Event):
    """The same held-out records at each evaluation: exact match, loss, calibration; null where not known."""

    event: Literal["fixed_eval"] = "fixed_eval"
    step: int
    em: float | None
    """Share of right answers among those that came whole, from 0 to 1."""
    ce: float | None
    """Nats per assistant token, over all held-out records."""
    ece: float | None
    """Expected calibration error of the predicted assistant tokens, from 0 to 1."""
    tokens: int
    """Those that `ce` and `ece` are of."""
    matches: tuple[bool | None, ...]
    """Answer by answer, always in the same order; null for one that did not come whole."""


class BestCheckpoint(BaseModel):
    """The best checkpoint of a run so far, as ``scoring.selection`` says."""

    model_config = ConfigDict(frozen=True)

    step: int
    path: str
    epoch: float | None = None
    eval_loss: float | None = None
    score: float | None = None
    epochs_without_improvement: int | None = None
    """Of the newest evaluation: how many in a row did not beat the one just before."""


class CheckpointEvent(_Event):
    """A whole, sealed checkpoint lies in the run folder; also said of the one that a run goes on from."""

    event: Literal["checkpoint"] = "checkpoint"
    step: int
    path: str
    eval_loss: float | None
    best: BestCheckpoint | None


class PublishedEvent(_Event):
    """A version has been committed; the daemon may move `current` if the decision says so."""

    event: Literal["published"] = "published"
    version: str
    decision: Literal["promote", "hold"]
    reason: str
    before_loss: float | None
    after_loss: float | None


class OutcomeEvent(_Event):
    """How the job ended; always the last event.

    `kind` is the reason in one word when `outcome` is ``failed`` or ``waiting``.
    """

    event: Literal["outcome"] = "outcome"
    outcome: Outcome
    kind: str | None = None
    message: str | None = None
    step: int | None = None
    version: str | None = None


Event = (
    HeartbeatEvent
    | PhaseEvent
    | NoteEvent
    | ReportEvent
    | PlanEvent
    | StepEvent
    | SignalsEvent
    | AlertEvent
    | EvaluatedEvent
    | ExampleEvent
    | FixedEvalEvent
    | CheckpointEvent
    | PublishedEvent
    | OutcomeEvent
)
_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def encode_event(event: Event) -> bytes:
    """Serialise to one line of JSON, newline included; numbers that are not finite become null."""
    return orjson.dumps(event.model_dump(mode="python")) + b"\n"


def decode_event(line: bytes) -> Event:
    """Parse one line; raise ValueError when it is not an event."""
    return _adapter.validate_json(line)


class EventWriter:
    """The worker's end of the pipe; safe to use from several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def emit(self, event: Event) -> None:
        """Write one event whole; raise BrokenPipeError when the daemon is gone."""
        view = memoryview(encode_event(event))
        with self._lock:
            while view:
                view = view[os.write(self._descriptor, view) :]
