"""An exported version answers as the version does, wherever it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import durable
from config import Config, load_config
from training.exporting import Exporter
from training.full_models import StoredPrecision
from training.versions import Version, VersionStore

Records = Callable[..., list[dict[str, Any]]]
IDS = torch.tensor([[5, 9, 20, 31, 7]])


def config_of(workshop: Any, *overrides: str) -> Config:
    settings = (f"model.base={workshop.model}", "model.precision=float32", "train.threads=1", *overrides)
    return load_config(workshop.paths.base, settings)


@pytest.fixture
def version(workshop: Any, make_chats: Records) -> Version:
    """A version of the tiny model that learned something."""
    outcome, _ = workshop.carry_out(workshop.job(make_chats(24), "train.num_train_epochs=4"))
    return VersionStore(workshop.paths).promote(outcome.version, "promoted by the test")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gguf_file_answers_as_the_version(
    precision: StoredPrecision, version: Version, workshop: Any, tmp_path: Path
) -> None:
    export = Exporter(workshop.paths, config_of(workshop)).export(
        version, "gguf", tmp_path / "out", precision
    )
    assert (export.format, export.obstacle, export.likeness.is_close) == ("gguf", None, True)
    durable.verify_folder(export.folder)
    assert [path.name for path in export.folder.glob("*.gguf")] == [f"v0001-{precision}.gguf"]
