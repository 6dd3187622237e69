"""What the tests of versions share: versions without a model, made in a moment."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import durable
from config import Paths
from tests.conftest import Workshop, chats
from training.version_facts import HeldOutResult, RecordCounts, VersionFacts
from training.versions import Version, VersionStore


class Shelf:
    """A base folder with versions whose weights are a few bytes."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.paths.create()
        self.store = VersionStore(paths)

    def add(self, adapter: Path | None = None, **changes: Any) -> Version:
        """Publish the next version: old, promoted, trained from the base unless `changes` say otherwise."""
        number = len(self.store.list()) + 1
        facts = VersionFacts(
            parent=None,
            job_id=f"{number:06d}-3f9c2a10",
            input_name="tickets.jsonl",
            input_sha256="ab" * 32,
            base_model="/models/base/small",
            base_sha256="cd" * 32,
            created_at=datetime(2026, 1, 2, tzinfo=UTC),
            config={},
            records=RecordCounts(train=190, held_out=10),
            steps=48,
            epochs=2,
            tokens=29668,
            train_loss=0.05,
            held_out=HeldOutResult(records=10, before_loss=2.0, after_loss=1.0),
            decision="promote",
            decision_reason="better",
        )
        staging = self.store.stage()
        if adapter is None:
            durable.write_bytes(staging / "adapter_model.safetensors", f"weights of v{number}".encode())
        else:
            shutil.copytree(adapter, staging, dirs_exist_ok=True)
        durable.make_folder(staging / "training_state")
        durable.write_bytes(staging / "training_state" / "optimizer.pt", bytes(1000))
        return self.store.publish(staging, facts.model_copy(update=changes))


@pytest.fixture(scope="session")
def shelf_of_six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder that `shelf` is a copy of: made once, since each version waits for the disk."""
    shelf = Shelf(Paths(tmp_path_factory.mktemp("shelf") / "base"))
    shelf.add(held_out=HeldOutResult(records=10, before_loss=2.0, after_loss=1.2))
    shelf.add(parent="v0001", decision="hold")
    shelf.add(parent="v0001", decision="hold")
    shelf.add(parent="v0001", held_out=HeldOutResult(records=10, before_loss=1.2, after_loss=0.5))
    shelf.add(parent="v0004")
    shelf.store.promote(shelf.add(parent="v0005"), "better")
    return shelf.paths.base


@pytest.fixture
def shelf(shelf_of_six: Path, tmp_path: Path) -> Shelf:
    """Six versions: v0002, v0003 and v0004 continue v0001, the first two were held; v0006 is current."""
    shutil.copytree(shelf_of_six, tmp_path / "base", symlinks=True)
    return Shelf(Paths(tmp_path / "base"))


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The base folder that `learned` is a copy of."""
    workshop = Workshop(tmp_path_factory.mktemp("learned") / "base", tiny_model)
    outcome, _ = workshop.carry_out(workshop.job(chats(48), "train.num_train_epochs=4"))
    VersionStore(workshop.paths).promote(str(outcome.version), "promoted by the test")
    return workshop.paths.base


@pytest.fixture
def learned(trained_once: Path, tiny_model: Path, tmp_path: Path) -> Workshop:
    """A base folder with one version of the tiny model, which is current."""
    shutil.copytree(trained_once, tmp_path / "learned", symlinks=True)
    return Workshop(tmp_path / "learned", tiny_model)


@pytest.fixture
def make_version(tmp_path: Path) -> Callable[..., Version]:
    """Publish a folder of adapter files as a version."""

    def make(adapter: Path, **facts: Any) -> Version:
        return Shelf(Paths(tmp_path)).add(adapter, **facts)

    return make


def flip(path: Path, position: int = 3) -> None:
    """Change one byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.fixture
def flip_byte() -> Callable[..., None]:
    return flip
