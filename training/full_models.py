"""Full models ``models/consolidated/<name>``: a base with an adapter merged into it, and who stands on them.

A version stands on the configured base or on one of these. Whoever loads a version asks here for its base,
so that what was learned before a merge can never be dropped by loading the base that was there earlier.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from config import ModelConfig, Paths
from errors import IntegrityError
from training.base_model import base_sha256, locate_base, prepare_base
from training.version_facts import VersionFacts

StoredPrecision = Literal["float32", "bfloat16", "float16"]


class Likeness(BaseModel):
    """How nearly two models answer the same fixed prompts."""

    model_config = ConfigDict(frozen=True)

    prompts: int
    same_answers: int
    """Prompts both answered, greedily, with the same tokens."""
    largest_logit_difference: float
    tolerance: float
    """The largest difference that is accepted."""

    @property
    def is_close(self) -> bool:
        return self.largest_logit_difference <= self.tolerance

    def __str__(self) -> str:
        same = "yes" if self.same_answers == self.prompts else "no"
        return (
            f"same answers: {same} ({self.same_answers} of {self.prompts} prompts); largest logit difference "
            f"{self.largest_logit_difference:.3g}, tolerance {self.tolerance:g}"
        )


class FullModelFacts(BaseModel):
    """Where a full model comes from; kept in its manifest."""

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    """The version that was merged, by name."""
    source_manifest_sha256: str
    lineage: tuple[str, ...]
    """The source and the versions it continues, newest first."""
    base_model: str
    base_sha256: str
    """Hash of the weights the adapter was merged into."""
    origin: str
    """``model.base`` of the first version of the lineage."""
    origin_sha256: str
    precision: StoredPrecision
    likeness: Likeness


def read_full_model(folder: Path) -> FullModelFacts:
    """Return what a full model says about itself; its files are not compared with its manifest."""
    manifest = durable.read_manifest(folder)
    try:
        facts = FullModelFacts.model_validate(manifest)
    except ValidationError as error:
        path = folder / durable.MANIFEST
        raise IntegrityError(f"{path}: not the manifest of a full model: {error}") from error
    if facts.name != folder.name:
        raise IntegrityError(f"{folder}: its manifest says {facts.name!r}; the folder was renamed")
    return facts


def base_under(
    paths: Paths, config: ModelConfig, facts: VersionFacts | None, *, prepare: bool = False
) -> Path:
    """Return the folder of the base that a version stands on; without a version the configured one.

    A sealed folder is checked byte by byte. With `prepare` the embedded base is made when it is missing.
    Raises ConfigError when the base is not there, IntegrityError when a merged one is damaged or comes from
    another base than the configured one.
    """
    if facts is None or facts.consolidated is None:
        return prepare_base(paths, config.base) if prepare else locate_base(paths, config)
    folder = paths.consolidated / facts.consolidated
    try:
        durable.verify_folder(folder)
        model = read_full_model(folder)
    except IntegrityError as error:
        raise IntegrityError(
            f"{facts.version} stands on a full model that is damaged: {error}; bring it back with: trainbox "
            f"versions restore {facts.version}, or go to the version before with: trainbox rollback"
        ) from error
    if config.base != model.origin:
        _refuse_other_origin(paths, config, facts, model)
    return folder


def _refuse_other_origin(
    paths: Paths, config: ModelConfig, facts: VersionFacts, model: FullModelFacts
) -> None:
    """Let the configured base be named otherwise, or be the full model itself, but not be another model."""
    if base_sha256(locate_base(paths, config)) not in (model.origin_sha256, facts.base_sha256):
        raise IntegrityError(
            f"{facts.version} stands on a full model that was made from {model.origin!r}, and model.base is "
            f"{config.base!r}; set it back, or roll back to a version of that base"
        )
