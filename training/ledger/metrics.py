"""The rows of single steps: what an event, or a line of the trainer's own log, says of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import TypedDict

import orjson

from monitoring.events import StepEvent

TREND_TOLERANCE = 0.01


class StepRow(TypedDict):
    """What is known of one optimizer step."""

    job_id: str
    step: int
    epoch: float | None
    train_loss: float | None
    train_perplexity: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens: int | None
    tokens_per_second: float | None
    timestamp: datetime | None


class EvaluationRow(TypedDict):
    """What was measured after one optimizer step."""

    job_id: str
    step: int
    eval_loss: float
    perplexity: float | None


class MetricBatch:
    """Some rows, to be written after all rows above `cut_to` are removed."""

    def __init__(self) -> None:
        self.cut_to: int | None = None
        self.steps: dict[int, StepRow] = {}
        self.evaluations: dict[int, EvaluationRow] = {}

    def __len__(self) -> int:
        return len(self.steps) + len(self.evaluations)

    def cut(self, step: int) -> None:
        """Drop what comes after `step`, here and where earlier batches were written."""
        self.cut_to = step if self.cut_to is None else min(step, self.cut_to)
        self.steps = {number: row for number, row in self.steps.items() if number <= step}
        self.evaluations = {number: row for number, row in self.evaluations.items() if number <= step}


def step_row(job_id: str, event: StepEvent) -> StepRow:
    """Return the row that an event makes."""
    return StepRow(
        job_id=job_id,
        step=event.step,
        epoch=event.epoch,
        train_loss=event.loss,
        train_perplexity=perplexity(event.loss),
        learning_rate=event.learning_rate,
        grad_norm=event.grad_norm,
        tokens=event.tokens,
        tokens_per_second=event.tokens / event.seconds if event.seconds > 0 else None,
        timestamp=event.at,
    )


def read_trainer_log(path: Path, job_id: str) -> Iterator[tuple[StepRow, float | None]]:
    """Yield each line as a row, with the held-out loss where the line is of an evaluation."""
    if not path.exists():
        return
    tokens_before: int | None = 0
    for line in path.read_bytes().splitlines():
        try:
            logged = orjson.loads(line)
        except orjson.JSONDecodeError:
            return  # torn by a crash
        loss, tokens_so_far = logged.get("loss"), logged.get("total_tokens")
        is_known = tokens_before is not None and tokens_so_far is not None
        row = StepRow(
            job_id=job_id,
            step=logged["current_steps"],
            epoch=logged.get("epoch"),
            train_loss=loss,
            train_perplexity=perplexity(loss),
            learning_rate=logged.get("lr"),
            grad_norm=None,
            tokens=tokens_so_far - tokens_before if is_known else None,
            tokens_per_second=None,
            timestamp=None,
        )
        yield row, logged.get("eval_loss")
        if "eval_loss" not in logged:
            tokens_before = tokens_so_far


def loss_trend(losses: list[float]) -> str:
    """Say where the last losses go: compare the mean of their second half with that of the first."""
    if len(losses) < 3:
        return "insufficient_data"
    half = len(losses) // 2
    change = fmean(losses[half:]) - fmean(losses[:half])
    if abs(change) <= TREND_TOLERANCE:
        return "stable"
    return "improving" if change < 0 else "degrading"


def perplexity(loss: float | None) -> float | None:
    """Return e to the power of a loss; None where that is beyond all measure."""
    if loss is None:
        return None
    try:
        return math.exp(loss)
    except OverflowError:
        return None
