"""The daemon's chores: they are done after each file, and their failure stops nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import durable
from config import load_config
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.housekeeping import Housekeeper


@pytest.fixture
def hire(shelf: Any) -> Iterator[Callable[..., Housekeeper]]:
    hired: list[Housekeeper] = []

    def start(*settings: str, **options: Any) -> Housekeeper:
        hired.append(Housekeeper(shelf.paths, load_config(shelf.paths.base, settings), **options))
        hired[-1].start()
        return hired[-1]

    yield start
    for housekeeper in hired:
        housekeeper.stop()


def test_versions_that_have_no_copy_get_one_at_the_start_and_after_each_file(
    shelf: Any, hire: Any, tmp_path: Path
) -> None:
    root = tmp_path / "second disk"
    root.mkdir()
    rested = threading.Event()
    housekeeper = hire(f"backup.root={root}", on_rest=rested.set)
    assert rested.wait(PATIENCE_SECONDS)
    assert sorted(path.name for path in root.iterdir()) == [f"v000{number}" for number in range(1, 7)]
    assert all(durable.is_sealed(copy) for copy in root.iterdir())
    rested.clear()
    shelf.add(parent="v0006")
    housekeeper.wake()
    assert rested.wait(PATIENCE_SECONDS)
    assert durable.is_sealed(root / "v0007")
    assert not housekeeper.is_busy


def test_a_disk_that_is_away_is_told_and_the_copy_made_when_it_is_back(
    hire: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "second disk"
    housekeeper = hire(f"backup.root={root}", retry_seconds=0.02)
    wait_until(lambda: housekeeper.trouble is not None)
    assert "mount its disk" in housekeeper.trouble
    assert "Housekeeping is tried again" in caplog.text
    root.mkdir()
    wait_until(lambda: housekeeper.trouble is None)
    assert durable.is_sealed(root / "v0006")


def test_waiting_for_another_try_is_not_being_busy(hire: Any, tmp_path: Path) -> None:
    rested = threading.Event()
    housekeeper = hire(f"backup.root={tmp_path / 'away'}", on_rest=rested.set)
    assert rested.wait(PATIENCE_SECONDS)
    assert not housekeeper.is_busy


def test_one_damaged_version_is_told_and_keeps_no_other_from_being_copied(
    shelf: Any, hire: Any, tmp_path: Path, flip_byte: Any
) -> None:
    root = tmp_path / "second disk"
    root.mkdir()
    flip_byte(shelf.paths.versions / "v0002" / "adapter_model.safetensors")
    housekeeper = hire(f"backup.root={root}")
    wait_until(lambda: housekeeper.trouble is not None)
    assert "v0002/adapter_model.safetensors" in housekeeper.trouble
    assert sorted(path.name for path in root.iterdir()) == ["v0001", "v0003", "v0004", "v0005", "v0006"]


def test_the_budget_is_kept_and_what_went_is_in_the_log(
    shelf: Any, hire: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rested = threading.Event()
    hire("retention.max_bytes=0", on_rest=rested.set)
    assert rested.wait(PATIENCE_SECONDS)
    assert [version.name for version in shelf.store.list()] == ["v0001", "v0004", "v0005", "v0006"]
    assert "Removed models/versions/v0002" in caplog.text


def test_stopping_ends_the_thread(hire: Any) -> None:
    before = set(threading.enumerate())
    housekeeper = hire()
    (thread,) = [one for one in set(threading.enumerate()) - before if one.name == "housekeeping"]
    housekeeper.stop()
    wait_until(lambda: not thread.is_alive())
