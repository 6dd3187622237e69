"""The wall clock jumps while the real daemon rests, trains and publishes: nothing that matters changes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import pytest

import durable
from tests.daemon_base import Base, wait_until
from training.versions import VersionStore

DAY = 86_400
JUMPS = {
    "ten years back": -3652 * DAY,
    "a day back": -DAY,
    "a second back": -1,
    "a day on": DAY,
    "twenty years on": 7305 * DAY,
}

pytestmark = pytest.mark.skipif(
    shutil.which("gcc") is None and os.environ.get("CI") != "true", reason="gcc is not installed"
)


@pytest.fixture(scope="module")
def wallshift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("wallshift") / "wallshift.so"
    source = Path(__file__).with_name("wallshift.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O", "-Wall", "-o", library, source], check=True)
    return library


class ShiftedBase(Base):
    """A base folder whose daemon and workers see a wall clock that the test moves."""

    def __init__(self, folder: Path, library: Path) -> None:
        super().__init__(folder)
        self._library = library
        self._shift_file = folder / "shift"
        self.jump(0)

    def jump(self, seconds: int) -> None:
        durable.write_bytes(self._shift_file, b"%d" % seconds)

    def start(self, *overrides: str, until_idle: bool = False, **environment: str) -> subprocess.Popen[bytes]:
        shifted = {"LD_PRELOAD": str(self._library), "WALLSHIFT_FILE": str(self._shift_file)}
        return super().start(*overrides, until_idle=until_idle, **shifted, **environment)

    def seen_shift(self) -> float:
        """Return how far from the true time the daemon believes to be."""
        seen: datetime = self.status.heartbeat_at
        return seen.timestamp() - time.time()

    @contextlib.contextmanager
    def held_publication(self, version: str) -> Iterator[None]:
        """Hold the daemon up between a version's commit and the move of `current`."""
        with filelock.FileLock(self.paths.versions_lock):
            wait_until((self.paths.versions / version / durable.MANIFEST).exists)
            yield

    def final_state(self) -> dict[str, Any]:
        """Return all that must not depend on the clock."""
        return {
            "jobs": [
                (job.job_id, job.name, job.state, job.outcome, job.attempts, job.version, self.steps(job))
                for job in self.jobs()
            ],
            "parents": [version.facts.parent for version in VersionStore(self.paths).list()],
            "current": os.readlink(self.paths.current),
            "done": self.files("done"),
            "left": self.files("processing"),
        }


@pytest.fixture
def base(tmp_path: Path, wallshift: Path) -> Iterator[ShiftedBase]:
    made = ShiftedBase(tmp_path / "base", wallshift)
    yield made
    made.close()


def live(base: ShiftedBase, jump: int) -> dict[str, Any]:
    """Jump there and back while the daemon rests, settles a file, waits, trains and publishes."""
    daemon = base.start("worker.hang_seconds=20", "inbox.settle_seconds=0.5")
    wait_until(lambda: base.is_in("idle"))
    base.jump(jump)
    wait_until(lambda: abs(base.seen_shift() - jump) < 2)
    assert base.reading is not None and not base.reading.is_stale
    dropped_at = time.monotonic()
    base.drop("a.jsonl", steps=4, wait_times=1)
    wait_until(lambda: base.status.queue.settling)
    base.jump(0)
    wait_until(base.jobs)
    assert time.monotonic() - dropped_at >= 0.5
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    base.drop("b.jsonl", steps=60, step_seconds=0.02)
    wait_until(lambda: base.is_at_step(5))
    base.jump(jump)
    base.drop("c.jsonl", publish_then_die=True)
    base.drop("high/d.jsonl")
    wait_until(lambda: base.is_at_step(30))
    assert base.reading is not None and base.reading.is_running and not base.reading.is_stale
    with base.held_publication("v0002"):
        base.jump(0)
    wait_until(lambda: os.readlink(base.paths.current) == "versions/v0002")
    with base.held_publication("v0003"):
        base.jump(jump)
    wait_until(lambda: base.files("done") == {"a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"})
    base.end(daemon)
    return base.final_state()


def test_a_jump_while_resting_training_or_publishing_changes_nothing_that_matters(
    tmp_path: Path, wallshift: Path
) -> None:
    def state_after(name: str, jump: int) -> dict[str, Any]:
        base = ShiftedBase(tmp_path / name, wallshift)
        try:
            return live(base, jump)
        finally:
            base.close()

    jumps = {"none": 0, **JUMPS}
    with ThreadPoolExecutor(3) as threads:  # each life is mostly waiting
        states = dict(zip(jumps, threads.map(state_after, jumps, jumps.values()), strict=True))
    undisturbed = states.pop("none")
    assert undisturbed["current"] == "versions/v0004"
    assert undisturbed["parents"] == [None, "v0001", "v0002", "v0003"]
    order = sorted((job[5], job[1]) for job in undisturbed["jobs"])
    assert [name for _, name in order] == ["a.jsonl", "b.jsonl", "d.jsonl", "c.jsonl"]
    for name, state in states.items():
        assert state == undisturbed, name


@pytest.mark.parametrize("jump", ["ten years back", "twenty years on"])
def test_a_hang_is_noticed_whatever_the_wall_clock_does_and_by_nothing_else(
    jump: str, base: ShiftedBase
) -> None:
    base.drop(steps=5, hang_at=3)
    daemon = base.start("worker.hang_seconds=3")
    wait_until(lambda: base.is_at_step(2))
    stuck_at = time.monotonic()
    base.jump(JUMPS[jump])
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    assert time.monotonic() - stuck_at > 2.5
    assert "said nothing for 3 s" in base.end(daemon)
    assert base.job().attempts == 2


@pytest.mark.parametrize("jump", ["ten years back", "twenty years on"])
def test_a_kill_between_two_jumps_loses_no_order_and_a_stop_from_before_is_ignored(
    jump: str, base: ShiftedBase
) -> None:
    base.drop("a.jsonl", steps=60, step_seconds=0.02, checkpoint_every=5)
    daemon = base.start()
    wait_until(lambda: base.is_at_step(12))
    daemon.send_signal(signal.SIGKILL)
    daemon.communicate()
    base.command("stop")
    later = time.time() + 3650 * DAY
    os.utime(base.paths.control("stop"), (later, later))
    base.jump(JUMPS[jump])
    base.drop("b.jsonl")
    log = base.run()
    assert "Ignored a .stop older than this daemon" in log
    assert base.inputs_of_versions() == ["a.jsonl", "b.jsonl"]
    assert os.readlink(base.paths.current) == "versions/v0002"
    assert VersionStore(base.paths).get("v0002").facts.parent == "v0001"
