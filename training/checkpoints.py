"""The checkpoints of a run: sealed, listed by number, rotated so that the best and the last stay."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

import durable

logger = logging.getLogger(__name__)

CHECKPOINT_NAME = re.compile(r"checkpoint-(\d+)")


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


class Checkpoint(BaseModel):
    """One whole checkpoint."""

    model_config = ConfigDict(frozen=True)

    folder: Path
    facts: CheckpointFacts


def seal(folder: Path, facts: CheckpointFacts) -> None:
    """Make a written checkpoint whole; sealing it again replaces its facts."""
    durable.seal_folder(folder, {"checkpoint": facts.model_dump(mode="json")})


def list_checkpoints(run: Path, *, verify: bool = True) -> list[Checkpoint]:
    """Return the whole checkpoints by step; without `verify` their bytes are not compared with the seal."""
    found = []
    for folder in run.iterdir():
        if CHECKPOINT_NAME.fullmatch(folder.name) is None:
            continue
        if durable.is_sealed(folder) if verify else (folder / durable.MANIFEST).is_file():
            facts = CheckpointFacts.model_validate(durable.read_manifest(folder)["checkpoint"])
            found.append(Checkpoint(folder=folder, facts=facts))
    return sorted(found, key=lambda checkpoint: checkpoint.facts.step)


def remove_torn(run: Path) -> list[str]:
    """Remove the checkpoints a crash left unfinished; return their names."""
    whole = {checkpoint.folder for checkpoint in list_checkpoints(run)}
    torn = [path for path in run.iterdir() if CHECKPOINT_NAME.fullmatch(path.name) and path not in whole]
    torn += run.glob(f".checkpoint-*{durable.PARTIAL_SUFFIX}")
    for folder in torn:
        logger.warning("Removed the unfinished checkpoint %s", folder)
        durable.remove_tree(folder)
    return sorted(folder.name for folder in torn)


def newest(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint of the highest step."""
    return max(checkpoints, key=lambda checkpoint: checkpoint.facts.step, default=None)


def best(checkpoints: list[Checkpoint]) -> Checkpoint | None:
    """Return the candidate with the lowest held-out loss, the later of equals; without losses the last."""
    candidates = [checkpoint for checkpoint in checkpoints if checkpoint.facts.is_candidate]
    scored = [checkpoint for checkpoint in candidates if checkpoint.facts.eval_loss is not None]
    if not scored:
        return newest(candidates)
    return min(scored, key=lambda checkpoint: (checkpoint.facts.eval_loss or 0.0, -checkpoint.facts.step))


def rotate(run: Path, limit: int) -> None:
    """Keep `limit` checkpoints: the best, the last, and the newest others."""
    checkpoints = list_checkpoints(run, verify=False)
    kept = {chosen.folder for chosen in (best(checkpoints), newest(checkpoints)) if chosen is not None}
    others = [checkpoint for checkpoint in reversed(checkpoints) if checkpoint.folder not in kept]
    for checkpoint in others[max(0, limit - len(kept)) :]:
        durable.remove_tree(checkpoint.folder)
        logger.info("Removed checkpoint %s", checkpoint.folder.name)
