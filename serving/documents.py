"""The documents that the training API answers with; what is not known is null, never 0."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from intake.report import Plan, ReportCard
from monitoring.smart_alerts import Alert
from training.checkpoints import CheckpointEntry
from training.version_facts import VersionDecision, VersionKind
from training.version_matrix import VersionMatrix

JobStateShown = Literal["queued", "running", "paused", "waiting", "completed", "refused", "skipped", "failed"]
"""Where a job is; ``paused`` and ``waiting`` are queued jobs whose last worker ended so."""


class Document(BaseModel):
    """A part of an answer; frozen."""

    model_config = ConfigDict(frozen=True)


class Problem(Document):
    """Why there is no answer."""

    detail: str


class JobSummary(Document):
    """One job in the list."""

    job_id: str
    number: int
    name: str
    """The dropped file's name, escaped for display."""
    state: JobStateShown
    priority: str
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    attempts: int
    step: int | None
    total_steps: int | None
    version: str | None
    decision: VersionDecision | None
    message: str | None


class Jobs(Document):
    """The newest jobs, newest first."""

    jobs: list[JobSummary]


class JobDetail(JobSummary):
    """One job with the report card of its file; only the first refusals are listed."""

    report: ReportCard | None
    plan: Plan | None


class StepColumns(Document):
    """Columns of equal length, by ascending step."""

    step: list[int] = []
    loss: list[float | None] = []
    ema_loss: list[float | None] = []
    learning_rate: list[float | None] = []
    grad_norm: list[float | None] = []
    tokens_per_sec: list[float | None] = []


class EvaluationColumns(Document):
    """Columns of equal length, by ascending step."""

    step: list[int] = []
    eval_loss: list[float | None] = []
    train_loss: list[float | None] = []
    score: list[float | None] = []
    fixed_eval_em: list[float | None] = []
    """Share of the held-out prompts answered exactly, from 0 to 1."""
    fixed_eval_ce: list[float | None] = []
    """Mean loss of the expected answers to those prompts, in nats per token."""


class CheckpointMark(Document):
    """A checkpoint in a chart."""

    step: int
    eval_loss: float | None
    score: float | None
    is_best: bool


class JobMetrics(Document):
    """The curves of a run, thinned out so that lows and highs stay."""

    job_id: str
    points: int
    """Steps that were trained, before thinning."""
    steps: StepColumns
    evaluations: EvaluationColumns
    checkpoints: list[CheckpointMark]


class Answer(Document):
    """What the model answered at one step."""

    step: int
    answer: str
    matches: bool
    loss: float | None


class ExampleEvolution(Document):
    """One held-out prompt and the answers to it as the run went on."""

    example_id: str
    system_prompt: str | None
    prompt: str
    golden: str
    answers: list[Answer]


class Evolution(Document):
    """How the answers to the same prompts changed."""

    examples: list[ExampleEvolution]


class Checkpoints(Document):
    """The checkpoints of a run, newest step first."""

    job_id: str
    checkpoints: list[CheckpointEntry]
    best_checkpoint: CheckpointEntry | None
    message: str | None


class HeldOutLosses(Document):
    """Losses of parent and version on the same held-out records, in nats per token."""

    records: int
    before_loss: float | None
    after_loss: float | None
    interval: tuple[float, float] | None


class VersionSummary(Document):
    """One version."""

    name: str
    parent: str | None
    kind: VersionKind
    created_at: datetime
    job_id: str
    input_name: str
    steps: int
    train_loss: float | None
    held_out: HeldOutLosses
    decision: VersionDecision
    decision_reason: str
    is_current: bool


class Versions(Document):
    """All versions, oldest first, and what each of them can do."""

    current: str | None
    versions: list[VersionSummary]
    matrix: VersionMatrix | None
    """Version by slice of held-out records; null until a version was tested."""


class WaitingFile(Document):
    """A file in the inbox that has not been taken yet."""

    name: str
    size_bytes: int
    priority: str


class FiledJob(Document):
    """A file that has been dealt with."""

    job_id: str
    name: str
    place: Literal["done", "rejected", "failed", "skipped"]
    report: ReportCard | None


class InboxContents(Document):
    """What waits, what is in the queue, and what became of the last files."""

    waiting: list[WaitingFile]
    queued: list[JobSummary]
    recent: list[FiledJob]


class PastAlert(Document):
    """An alert that began or ended."""

    job_id: str | None
    """The job that ran then; null where none did."""
    at: datetime
    kind: Literal["raised", "resolved"]
    severity: str
    category: str
    message: str
    details: dict[str, Any]
    recommendation: str


class Alerts(Document):
    """What alarms now, and what did, newest first."""

    active: list[Alert]
    history: list[PastAlert]


class Health(Document):
    """Whether the daemon is well."""

    status: Literal["ok", "stale", "stopped", "unknown"]
    """``stale``: it lives but has long written nothing, or its process is gone."""
    state: str | None
    pid: int | None
    heartbeat_at: datetime | None
    heartbeat_age_seconds: float | None
