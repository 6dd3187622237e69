"""What workers print is kept, but never so much that it fills a disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import Paths
from training.run_logs import RunLog, drop_old_logs


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


def test_a_log_is_set_aside_at_its_size_and_says_so(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "a.log", max_bytes=1000)
    for number in range(500):
        log.append(b"line %03d\n" % number)
    older = tmp_path / "a.log.1"
    assert (tmp_path / "a.log").read_bytes().startswith(b"(older lines are in a.log.1")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2100
    lines = (older.read_bytes() + (tmp_path / "a.log").read_bytes()).splitlines()
    kept = [int(line[5:]) for line in lines if line.startswith(b"line")]
    assert kept == list(range(kept[0], 500))


def test_a_log_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    RunLog(tmp_path / "missing" / "a.log").append(b"lost\n")
    assert not (tmp_path / "missing").exists()


def test_the_logs_of_the_newest_jobs_by_number_are_kept(paths: Paths) -> None:
    for number in (7, 9, 10, 100_000, 1_000_000):
        (paths.run_logs / f"{number:06d}-0a0a0a0a.log").touch()
    (paths.run_logs / "000009-0a0a0a0a.log.1").touch()
    (paths.run_logs / "worker.log").touch()
    assert drop_old_logs(paths, keep=4, current=1_000_001) == 3
    assert {path.name for path in paths.run_logs.iterdir()} == {
        *("000010-0a0a0a0a.log", "100000-0a0a0a0a.log", "1000000-0a0a0a0a.log", "worker.log")
    }
    assert drop_old_logs(paths, keep=4, current=1_000_001) == 0
    assert drop_old_logs(paths, keep=1, current=10) == 1
    assert (paths.run_logs / "000010-0a0a0a0a.log").exists()
