"""The two tables of the ledger; `migrations` brings an older database to them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Double, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

REVISION = "0001"
"""The newest migration: a database that bears it needs none."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment; always in UTC, also where a database keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Python's types, and what keeps them exactly on SQLite and PostgreSQL alike."""

    type_annotation_map = {  # noqa: RUF012 - read by SQLAlchemy from the class
        int: BigInteger,
        float: Double,
        str: Text,
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
    }


class LocalTrainingJob(Base):
    """One job: a dropped file, how far it is, and what came of it."""

    __tablename__ = "local_training_jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    """Jobs are ordered by it."""
    file_name: Mapped[str]
    dataset_path: Mapped[str]
    """Where the dropped file lies, below the base folder."""
    model_name: Mapped[str]
    status: Mapped[str]
    """queued, running, paused, completed, failed or cancelled; a refused file counts as failed."""
    outcome: Mapped[str | None]
    """completed, refused, skipped or failed."""
    failure_kind: Mapped[str | None]
    error_message: Mapped[str | None]
    attempts: Mapped[int]
    version: Mapped[str | None]
    config: Mapped[dict[str, Any] | None]
    """The resolved configuration of the run, without where the ledger is."""

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    updated_at: Mapped[datetime]

    progress: Mapped[float | None]
    """Percent of the planned steps."""
    current_step: Mapped[int | None]
    total_steps: Mapped[int | None]
    current_epoch: Mapped[float | None]
    total_epochs: Mapped[int | None]

    loss: Mapped[float | None]
    eval_loss: Mapped[float | None]
    final_loss: Mapped[float | None]
    """Loss of the last step of a completed job."""
    final_eval_loss: Mapped[float | None]
    """Held-out loss of the version."""
    perplexity: Mapped[float | None]
    train_perplexity: Mapped[float | None]
    loss_trend: Mapped[str | None]
    """improving, stable, degrading or insufficient_data."""
    learning_rate: Mapped[float | None]
    grad_norm: Mapped[float | None]
    tokens_per_second: Mapped[float | None]
    samples_per_second: Mapped[float | None]

    total_samples: Mapped[int | None]
    train_samples: Mapped[int | None]
    val_samples: Mapped[int | None]
    total_tokens_processed: Mapped[int | None]
    batch_size: Mapped[int | None]
    gradient_accumulation_steps: Mapped[int | None]
    resume_from_checkpoint: Mapped[str | None]

    best_checkpoint_score: Mapped[float | None]
    best_checkpoint_step: Mapped[int | None]
    best_checkpoint_epoch: Mapped[float | None]
    best_eval_loss: Mapped[float | None]
    best_checkpoint_path: Mapped[str | None]
    """Below the base folder."""
    epochs_without_improvement: Mapped[int | None]
    """Whole epochs between the lowest held-out loss and the last."""
    details: Mapped[dict[str, Any]] = mapped_column("metadata")
    """What has no column of its own: verdict on the version, parent, priority, tags, the file's hash."""

    sources: Mapped[str | None]
    """Sizes and times of the files a finished job's row was made from; no fact about the job."""


class TrainingMetric(Base):
    """One optimizer step of one job."""

    __tablename__ = "training_metrics"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    epoch: Mapped[float | None]
    train_loss: Mapped[float | None]
    train_perplexity: Mapped[float | None]
    learning_rate: Mapped[float | None]
    grad_norm: Mapped[float | None]
    tokens: Mapped[int | None]
    tokens_per_second: Mapped[float | None]
    timestamp: Mapped[datetime | None]
    eval_loss: Mapped[float | None]
    perplexity: Mapped[float | None]
