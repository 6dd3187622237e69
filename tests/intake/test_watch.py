"""The bell rings when something comes, and stays silent for our own moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import Paths
from intake.watch import Bell, Watch
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    (made.inbox / "team").mkdir()
    return made


@pytest.fixture
def bell(paths: Paths) -> Iterator[Bell]:
    made = Bell()
    watch = Watch(paths, made)
    watch.start()
    yield made
    watch.stop()


def test_a_bell_rings_for_the_one_who_waits() -> None:
    bell = Bell()
    assert not bell.wait(0.0)
    threading.Timer(0.05, bell.ring).start()
    assert bell.wait(PATIENCE_SECONDS)
    assert not bell.wait(0.0)


def test_many_rings_are_one() -> None:
    bell = Bell()
    for _ in range(3):
        bell.ring()
    assert bell.wait(0.0)
    assert not bell.wait(0.0)


@pytest.mark.parametrize("name", ["a.jsonl", "team/a.jsonl"])
def test_a_dropped_file_rings(paths: Paths, bell: Bell, name: str) -> None:
    (paths.inbox / name).write_text("{}\n", encoding="utf-8")
    assert bell.wait(PATIENCE_SECONDS)


def test_a_file_moved_in_rings(paths: Paths, bell: Bell, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n", encoding="utf-8")
    (tmp_path / "a.jsonl").rename(paths.inbox / "a.jsonl")
    assert bell.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("command", ["pause", "resume", "skip", "stop"])
def test_a_control_file_rings(paths: Paths, bell: Bell, command: str) -> None:
    paths.control(command).touch()
    assert bell.wait(PATIENCE_SECONDS)


def test_what_we_do_ourselves_does_not_ring(paths: Paths, bell: Bell) -> None:
    for path in (paths.done / "a.jsonl", paths.processing / "b.jsonl", paths.base / "notes.txt"):
        path.write_text("{}\n", encoding="utf-8")
    assert not bell.wait(0.3)
    paths.control("stop").touch()
    assert bell.wait(PATIENCE_SECONDS)


def test_where_nothing_can_be_watched_the_clock_has_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watch(Paths(tmp_path / "missing"), Bell())
    watch.start()
    watch.stop()
    assert "looking by the clock only" in caplog.text
