"""The jobs and their metrics."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "local_training_jobs",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("file_name", sa.Text(), nullable=False),
        sa.Column("dataset_path", sa.Text(), nullable=False),
        sa.Column("model_name", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text()),
        sa.Column("failure_kind", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Text()),
        sa.Column("config", sa.JSON()),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("started_at", moment),
        sa.Column("completed_at", moment),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("progress", sa.Double()),
        sa.Column("current_step", sa.BigInteger()),
        sa.Column("total_steps", sa.BigInteger()),
        sa.Column("current_epoch", sa.Double()),
        sa.Column("total_epochs", sa.BigInteger()),
        sa.Column("loss", sa.Double()),
        sa.Column("eval_loss", sa.Double()),
        sa.Column("final_loss", sa.Double()),
        sa.Column("final_eval_loss", sa.Double()),
        sa.Column("perplexity", sa.Double()),
        sa.Column("train_perplexity", sa.Double()),
        sa.Column("loss_trend", sa.Text()),
        sa.Column("learning_rate", sa.Double()),
        sa.Column("grad_norm", sa.Double()),
        sa.Column("tokens_per_second", sa.Double()),
        sa.Column("samples_per_second", sa.Double()),
        sa.Column("total_samples", sa.BigInteger()),
        sa.Column("train_samples", sa.BigInteger()),
        sa.Column("val_samples", sa.BigInteger()),
        sa.Column("total_tokens_processed", sa.BigInteger()),
        sa.Column("batch_size", sa.BigInteger()),
        sa.Column("gradient_accumulation_steps", sa.BigInteger()),
        sa.Column("resume_from_checkpoint", sa.Text()),
        sa.Column("best_checkpoint_score", sa.Double()),
        sa.Column("best_checkpoint_step", sa.BigInteger()),
        sa.Column("best_checkpoint_epoch", sa.Double()),
        sa.Column("best_eval_loss", sa.Double()),
        sa.Column("best_checkpoint_path", sa.Text()),
        sa.Column("epochs_without_improvement", sa.BigInteger()),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("sources", sa.Text()),
    )
    op.create_table(
        "training_metrics",
        sa.Column("job_id", sa.Text(), primary_key=True),
        sa.Column("step", sa.BigInteger(), primary_key=True),
        sa.Column("epoch", sa.Double()),
        sa.Column("train_loss", sa.Double()),
        sa.Column("train_perplexity", sa.Double()),
        sa.Column("learning_rate", sa.Double()),
        sa.Column("grad_norm", sa.Double()),
        sa.Column("tokens", sa.BigInteger()),
        sa.Column("tokens_per_second", sa.Double()),
        sa.Column("timestamp", moment),
        sa.Column("eval_loss", sa.Double()),
        sa.Column("perplexity", sa.Double()),
    )
