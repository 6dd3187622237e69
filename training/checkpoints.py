"""The checkpoints of a run: sealed, scored once, listed by number, rotated.

A score lies as ``score.json`` in the folder of its checkpoint, under the same seal as the weights. Whoever
asks which checkpoint is best (the run, the list, a restarted daemon) compares those stored scores.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

import durable
from errors import IntegrityError
from training.checkpoint_scorer import ScoredCheckpoint, Selection, choose_best, history_from_log

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")
SCORE = "score.json"
TRAINER_STATE = "trainer_state.json"


class CheckpointFacts(BaseModel):
    """Where a run stood when a checkpoint was made; kept in its manifest."""

    model_config = ConfigDict(frozen=True)

    step: int
    epoch: float
    tokens: int
    """Tokens trained so far in this run, padding not counted."""
    precision: Literal["float32", "bfloat16"]
    micro_batch: int
    """Records in one pass; smaller than configured where memory was short."""
    eval_loss: float | None = None
    train_loss: float | None = None
    """Mean over the tokens trained since the evaluation before this one."""
    is_candidate: bool = False
    """Made at a planned evaluation; only such checkpoints can become a version."""
    window_sum: float = 0.0
    window_weight: int = 0
    """Losses since the last evaluation, so that a resumed run reports the same mean."""
    early_stopping: dict[str, Any] | None = None
    """What early stopping has seen so far; None where it is off."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint."""

    folder: Path
    facts: CheckpointFacts
    size_bytes: int
    made_at: datetime
    scored: ScoredCheckpoint | None = None
    """Its evaluation; None where nothing was held out, and after a pause between evaluations."""


class CheckpointEntry(BaseModel):
    """One line of a run's list of checkpoints."""

    model_config = ConfigDict(frozen=True)

    path: str
    epoch: float
    step: int
    eval_loss: float | None
    train_loss: float | None
    score: float | None
    """Lower is better; null where it was not or could not be scored."""
    parts: dict[str, float | None] | None
    """The terms of the score."""
    size_bytes: int
    created_at: datetime
    is_best: bool
    is_latest: bool


def seal(folder: Path, facts: CheckpointFacts, scored: ScoredCheckpoint | None = None) -> None:
    """Make a written checkpoint whole; sealing it again replaces its facts."""
    if scored is not None:
        durable.write_json(folder / SCORE, scored.to_json())
    durable.seal_folder(folder, {"checkpoint": facts.model_dump(mode="json")})


def list_checkpoints(run: Path, *, verify: bool = True) -> list[Checkpoint]:
    """Return the whole checkpoints by step; without `verify` their bytes are not compared with the seal."""
    found = []
    for folder in run.iterdir() if run.is_dir() else ():
        if CHECKPOINT_NAME.fullmatch(folder.name) is None:
            continue
        if durable.is_sealed(folder) if verify else (folder / durable.MANIFEST).is_file():
            try:
                found.append(_read(folder))
            except (FileNotFoundError, IntegrityError):
                if folder.exists():
                    raise
                # A run that goes on has just removed it.
    return _score_old_ones(sorted(found, key=lambda checkpoint: checkpoint.facts.step))


def remove_torn(run: Path) -> list[str]:
    """Remove the checkpoints a crash left unfinished; return their names."""
    whole = {checkpoint.folder for checkpoint in list_checkpoints(run)}
    torn = [path for path in run.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path not in whole]
    torn += run.glob(f".checkpoint-*{durable.PARTIAL_SUFFIX}")
    for folder in torn:
        logger.warning("Removed the unfinished checkpoint %s", folder)
        durable.remove_tree(folder)
    return sorted(folder.name for folder in torn)


def newest(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint of the highest step."""
    return max(checkpoints, key=lambda checkpoint: checkpoint.facts.step, default=None)


def best(checkpoints: Sequence[Checkpoint], selection: Selection) -> Checkpoint | None:
    """Return the candidate that `selection` prefers; where nothing could be scored, the last one."""
    candidates = [checkpoint for checkpoint in checkpoints if checkpoint.facts.is_candidate]
    by_step = {checkpoint.facts.step: checkpoint for checkpoint in candidates}
    chosen = choose_best(
        (checkpoint.scored for checkpoint in candidates if checkpoint.scored is not None), selection
    )
    return newest(candidates) if chosen is None else by_step[chosen.step]


def describe(run: Path, selection: Selection) -> list[CheckpointEntry]:
    """Return what a person is shown of each whole checkpoint, newest step first."""
    checkpoints = list_checkpoints(run, verify=False)
    best_one, latest = best(checkpoints, selection), newest(checkpoints)
    return [
        _entry(checkpoint, is_best=checkpoint is best_one, is_latest=checkpoint is latest)
        for checkpoint in reversed(checkpoints)
    ]


def rotate(run: Path, limit: int, selection: Selection) -> None:
    """Keep `limit` checkpoints: the best, the last, and the newest others."""
    checkpoints = list_checkpoints(run, verify=False)
    kept = {chosen.folder for chosen in (best(checkpoints, selection), newest(checkpoints)) if chosen}
    others = [checkpoint for checkpoint in reversed(checkpoints) if checkpoint.folder not in kept]
    for checkpoint in others[max(0, limit - len(kept)) :]:
        durable.remove_tree(checkpoint.folder)
        logger.info("Removed checkpoint %s", checkpoint.folder.name)


def _read(folder: Path) -> Checkpoint:
    manifest = durable.read_manifest(folder)
    made_at = (folder / durable.MANIFEST).stat().st_mtime
    is_scored = SCORE in manifest["files"]
    return Checkpoint(
        folder=folder,
        facts=CheckpointFacts.model_validate(manifest["checkpoint"]),
        size_bytes=sum(file["size_bytes"] for file in manifest["files"].values()),
        made_at=datetime.fromtimestamp(made_at, UTC),
        scored=ScoredCheckpoint.from_json(durable.read_json(folder / SCORE)) if is_scored else None,
    )


def _score_old_ones(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Score evaluated checkpoints that have no score.json from the newest log of the run."""
    last = newest(checkpoints)
    old = [one for one in checkpoints if one.scored is None and one.facts.eval_loss is not None]
    if last is None or not old or not (last.folder / TRAINER_STATE).is_file():
        return checkpoints
    log: list[dict[str, Any]] = durable.read_json(last.folder / TRAINER_STATE)["log_history"]
    by_step = {scored.step: scored for scored in history_from_log(log).scored}
    return [replace(one, scored=one.scored or by_step.get(one.facts.step)) for one in checkpoints]


def _entry(checkpoint: Checkpoint, *, is_best: bool, is_latest: bool) -> CheckpointEntry:
    facts, scored = checkpoint.facts, checkpoint.scored
    document = None if scored is None else scored.to_json()
    return CheckpointEntry(
        path=str(checkpoint.folder),
        epoch=facts.epoch,
        step=facts.step,
        eval_loss=facts.eval_loss,
        train_loss=facts.train_loss,
        score=None if document is None else document["score"],
        parts=None if document is None else document["parts"],
        size_bytes=checkpoint.size_bytes,
        created_at=checkpoint.made_at,
        is_best=is_best,
        is_latest=is_latest,
    )
