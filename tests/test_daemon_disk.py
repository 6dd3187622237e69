"""The real daemon on disks that are really full: it waits, says so, loses nothing and goes on by itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_base import Base
from tests.small_disk import SmallDisk, small_disk
from tests.waiting import wait_until

MIB = 2**20
NO_BASE = "model.base=./nowhere"  # so that the stub's runs are forecast by their records alone


class DiskBase(Base):
    """A base folder on a small disk."""

    disk: SmallDisk

    def drop_large(self, name: str, size_bytes: int) -> bool:
        """Drop a file as a careful program does, under another name first; False when it does not fit."""
        path = self.drop(f".{name}.part", tag=name, steps=2)
        try:
            with path.open("ab") as file:
                file.write(b'{"filler": "' + b"x" * size_bytes + b'"}\n')
                os.fsync(file.fileno())
        except OSError:
            path.unlink()
            return False
        path.rename(self.paths.inbox / name)
        return True

    def log(self) -> str:
        return self.paths.log_file.read_text(encoding="utf-8")


@contextlib.contextmanager
def base_on(folder: Path, options: str) -> Iterator[DiskBase]:
    with small_disk(folder, options) as disk:
        base = DiskBase(disk.folder)
        base.disk = disk
        try:
            yield base
        finally:
            base.close()


def test_files_dropped_until_a_disk_of_300_mb_is_full_are_all_trained_once_there_is_room(
    tmp_path: Path,
) -> None:
    with base_on(tmp_path / "disk", "size=300m") as base:
        daemon = base.start(NO_BASE, f"disk.min_free_bytes={20 * MIB}", "inbox.poll_seconds=0.2")
        dropped: list[str] = []
        while base.drop_large(f"{len(dropped):02d}.jsonl", 10 * MIB):
            dropped.append(f"{len(dropped):02d}.jsonl")
            wait_until(lambda: not base.status or not base.status.queue.settling)
        wait_until(lambda: base.is_in("waiting"))
        assert "free, expected" in base.status.message and "20 MiB to leave free" in base.status.message
        assert base.disk.free_bytes < 20 * MIB + 37 * MIB
        assert all(job.attempts == 0 for job in base.jobs() if job.outcome is None)
        assert daemon.poll() is None
        subprocess.run(["mount", "-o", "remount,size=1g", str(base.disk.folder)], check=True)
        wait_until(lambda: base.files("done") == set(dropped))
        base.end(daemon)
        assert len(dropped) > 8
        assert sorted(base.inputs_of_versions()) == dropped
        assert {(job.outcome, job.attempts) for job in base.jobs()} == {("completed", 1)}
        assert "Traceback" not in base.log()
        assert base.log().count("Waiting for room") + base.log().count("Could not claim") < 10


@pytest.mark.config_key("disk.min_free_bytes")
def test_a_job_that_does_not_fit_waits_uses_no_attempt_and_goes_on_when_it_does(tmp_path: Path) -> None:
    with base_on(tmp_path / "disk", "size=50m") as base:
        base.drop()
        base.disk.fill(leave_bytes=15 * MIB)
        daemon = base.start(NO_BASE, f"disk.min_free_bytes={10 * MIB}")
        wait_until(lambda: base.files("done") == {"a.jsonl"})
        base.disk.clear()
        base.disk.fill(leave_bytes=5 * MIB)
        base.drop("b.jsonl")
        wait_until(lambda: base.is_in("waiting") and "b.jsonl" in (base.status.message or ""))
        assert "10 MiB to leave free (disk.min_free_bytes)" in base.status.message
        assert base.status.queue.trouble == base.status.message
        base.disk.clear()
        wait_until(lambda: base.files("done") == {"a.jsonl", "b.jsonl"})
        wait_until(lambda: base.is_in("idle"))
        assert base.status.message is None or "cannot take" not in base.status.message
        base.end(daemon)


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_run_that_gets_short_of_room_saves_waits_and_goes_on_from_its_step(
    what: str, tmp_path: Path
) -> None:
    with base_on(tmp_path / "disk", "size=50m,nr_inodes=1000") as base:
        base.drop(steps=60, hold_at=(20,))
        daemon = base.start(NO_BASE, f"disk.min_free_bytes={10 * MIB}")
        wait_until(lambda: base.is_at_step(5))
        if what == "bytes":
            base.disk.fill(leave_bytes=5 * MIB)
        else:
            base.disk.take_inodes(leave=40)
        wait_until(lambda: base.is_in("waiting"))
        assert ("MiB free, expected" if what == "bytes" else "more files (inodes), expected") in (
            base.status.message
        )
        assert base.workers() == []
        assert base.job().attempts == 0
        base.disk.clear()
        base.let_go(20)
        wait_until(lambda: base.files("done") == {"a.jsonl"})
        assert base.steps(base.job()) == list(range(1, 61))
        assert (base.job().outcome, base.job().attempts) == ("completed", 1)
        base.end(daemon)


def test_a_disk_without_inodes_is_waited_out(tmp_path: Path) -> None:
    with base_on(tmp_path / "disk", "size=50m,nr_inodes=400") as base:
        daemon = base.start(NO_BASE)
        wait_until(lambda: base.is_in("idle"))
        base.drop("a.jsonl")
        base.drop("b.jsonl")
        base.disk.take_inodes(leave=3)
        wait_until(lambda: base.is_in("waiting"))
        assert "more files (inodes)" in base.status.message
        base.disk.clear()
        wait_until(lambda: base.files("done") == {"a.jsonl", "b.jsonl"})
        assert sorted(base.inputs_of_versions()) == ["a.jsonl", "b.jsonl"]
        base.end(daemon)
        assert "Traceback" not in base.log()
