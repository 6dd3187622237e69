"""The tables of the ledger; `migrations` brings an older database to them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Double,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)

REVISION = "0002"
"""The newest migration: a database that bears it needs none."""


class Moment(TypeDecorator[datetime]):
    """A time in UTC, also where a database keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA = MetaData()
JOBS = Table(
    "local_training_jobs",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),  # Jobs are ordered by it
    Column("file_name", Text, nullable=False),
    Column("dataset_path", Text, nullable=False),  # Where the dropped file lies, below the base folder
    Column("model_name", Text, nullable=False),
    # queued, running, paused, completed, failed or cancelled; a refused file counts as failed
    Column("status", Text, nullable=False),
    Column("outcome", Text),  # completed, refused, skipped or failed
    Column("failure_kind", Text),
    Column("error_message", Text),
    Column("attempts", BigInteger, nullable=False),
    Column("version", Text),
    # The resolved configuration of the run, without where the ledger is
    Column("config", JSON(none_as_null=True)),
    Column("created_at", Moment, nullable=False),
    Column("started_at", Moment),
    Column("completed_at", Moment),
    Column("updated_at", Moment, nullable=False),
    Column("progress", Double),  # Percent of the planned steps
    Column("current_step", BigInteger),
    Column("total_steps", BigInteger),
    Column("current_epoch", Double),
    Column("total_epochs", BigInteger),
    Column("loss", Double),
    Column("eval_loss", Double),
    Column("final_loss", Double),  # Loss of the last step of a completed job
    Column("final_eval_loss", Double),  # Held-out loss of the version
    Column("perplexity", Double),
    Column("train_perplexity", Double),
    Column("loss_trend", Text),  # improving, stable, degrading or insufficient_data
    Column("learning_rate", Double),
    Column("grad_norm", Double),
    Column("tokens_per_second", Double),
    Column("samples_per_second", Double),
    Column("total_samples", BigInteger),
    Column("train_samples", BigInteger),
    Column("val_samples", BigInteger),
    Column("total_tokens_processed", BigInteger),
    Column("batch_size", BigInteger),
    Column("gradient_accumulation_steps", BigInteger),
    Column("resume_from_checkpoint", Text),
    Column("best_checkpoint_score", Double),
    Column("best_checkpoint_step", BigInteger),
    Column("best_checkpoint_epoch", Double),
    Column("best_eval_loss", Double),
    Column("best_checkpoint_path", Text),  # Below the base folder
    # Whole epochs between the lowest held-out loss and the last
    Column("epochs_without_improvement", BigInteger),
    # What has no column of its own: verdict on the version, parent, priority, tags, the file's hash
    Column("metadata", JSON(none_as_null=True), nullable=False),
    # Sizes and times of the files a finished job's row was made from; no fact about the job
    Column("sources", Text),
)
METRICS = Table(
    "training_metrics",
    METADATA,
    Column("job_id", Text, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("epoch", Double),
    Column("train_loss", Double),
    Column("train_perplexity", Double),
    Column("learning_rate", Double),
    Column("grad_norm", Double),
    Column("tokens", BigInteger),
    Column("tokens_per_second", Double),
    Column("timestamp", Moment),
    Column("eval_loss", Double),
    Column("perplexity", Double),
)
SUITE_RESULTS = Table(
    "suite_results",
    METADATA,
    Column("file", Text, primary_key=True),  # Of the answers, below the base folder
    Column("level", Text, primary_key=True),  # Empty for all items, - for those without a level
    Column("model", Text, nullable=False),  # A version, or base- and the start of its weights' hash
    Column("suite", Text, nullable=False),
    Column("suite_sha256", Text, nullable=False),
    Column("identity", Text, nullable=False),  # Hash of suite, model and settings
    Column("suite_items", BigInteger, nullable=False),
    Column("items", BigInteger, nullable=False),  # Answered so far
    Column("correct", BigInteger, nullable=False),
    Column("accuracy", Double, nullable=False),
    Column("interval_low", Double, nullable=False),  # Wilson's, 95 %
    Column("interval_high", Double, nullable=False),
    Column("mean_score", Double, nullable=False),
    Column("format_rate", Double),
    Column("cut_off", BigInteger, nullable=False),
    Column("updated_at", Moment, nullable=False),
    # Size and time of the file; no fact about the results
    Column("source", Text, nullable=False),
)
