"""The wall clock jumps while the real daemon rests, trains and publishes: nothing that matters changes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import filelock
import pytest

import durable
from tests.daemon_base import Base
from tests.waiting import wait_until
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
    def held_publication(self, version: str, held_before: int) -> Iterator[None]:
        """Hold the daemon up between a version's commit and the move of `current`.

        The run, which its script holds before a step, is let go on once that is sure.
        """
        with filelock.FileLock(self.paths.versions_lock):
            self.let_go(held_before)
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


def live(base: ShiftedBase, jumps: Sequence[int]) -> dict[str, Any]:
    """Train one file for each jump, there and back while the daemon rests, settles, trains and publishes."""
    daemon = base.start(
        "worker.hang_seconds=20", "inbox.settle_seconds=0.3", "inbox.unfinished_line_seconds=3600"
    )
    for number, jump in enumerate(jumps, 1):
        wait_until(lambda: base.is_in("idle"))
        base.jump(jump)
        wait_until(lambda jump=jump: abs(base.seen_shift() - jump) < 3)  # type: ignore[misc]
        wait_until(lambda: is_heard(base))
        wait_times, dies = int(number == 1), number == 2
        unfinished = base.drop(
            f"{number}.jsonl", steps=60, hold_at=(6, 9), wait_times=wait_times, publish_then_die=dies
        )
        # Without the end of its line the file is not complete, however late it is looked at.
        os.truncate(unfinished, unfinished.stat().st_size - 1)
        wait_until(lambda: base.status.queue.settling)
        base.jump(0)
        dropped_at = time.monotonic()
        with unfinished.open("ab") as file:
            file.write(b"\n")
        wait_until(lambda number=number: len(base.jobs()) == number)  # type: ignore[misc]
        assert time.monotonic() - dropped_at >= 0.3
        wait_until(lambda number=number: is_at(base, number, step=5))  # type: ignore[misc]
        base.jump(jump)
        base.let_go(6)
        wait_until(lambda number=number: is_at(base, number, step=8))  # type: ignore[misc]
        wait_until(lambda: is_heard(base))
        with base.held_publication(f"v{number:04d}", held_before=9):
            base.jump(0)
        wait_until(lambda number=number: len(base.files("done")) == number)  # type: ignore[misc]
    base.end(daemon)
    return base.final_state()


def is_heard(base: ShiftedBase) -> bool:
    """Tell whether the daemon lives and is not taken for silent, as one that was held up for a moment is."""
    return base.reading is not None and base.reading.is_running and not base.reading.is_stale


def is_at(base: ShiftedBase, number: int, step: int) -> bool:
    return base.is_at_step(step) and bool(base.status.current_file == f"{number}.jsonl")


def test_jumps_while_resting_training_or_publishing_change_nothing_that_matters(
    tmp_path: Path, wallshift: Path
) -> None:
    def state_after(jumps: Sequence[int]) -> dict[str, Any]:
        base = ShiftedBase(tmp_path / ("jumping" if any(jumps) else "still"), wallshift)
        try:
            return live(base, jumps)
        finally:
            base.close()

    with ThreadPoolExecutor(2) as threads:  # each life is mostly waiting
        jumping, still = threads.map(state_after, [list(JUMPS.values()), [0] * len(JUMPS)])
    assert jumping == still
    assert still["current"] == "versions/v0005"
    assert still["parents"] == [None, "v0001", "v0002", "v0003", "v0004"]
    assert [(job[1], job[3], job[5]) for job in still["jobs"]] == [
        (f"{number}.jsonl", "completed", f"v{number:04d}") for number in range(1, 6)
    ]


def test_a_hang_is_noticed_whatever_the_wall_clock_does_and_by_nothing_else(base: ShiftedBase) -> None:
    base.drop(steps=5, hang_at=3)
    begun_at = time.monotonic()
    daemon = base.start("worker.hang_seconds=20")
    wait_until(lambda: base.is_at_step(2))
    for jump in JUMPS.values():
        base.jump(jump)
        wait_until(lambda jump=jump: abs(base.seen_shift() - jump) < 3)  # type: ignore[misc]
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    assert time.monotonic() - begun_at > 20
    assert "said nothing for 20 s" in base.end(daemon)
    attempts = base.paths.run(base.job().job_id).folder / "stub_attempts"
    assert len(attempts.read_bytes().splitlines()) == 2


def test_a_kill_and_a_jump_lose_no_order_and_a_stop_from_before_is_ignored(base: ShiftedBase) -> None:
    base.drop("a.jsonl", steps=60, checkpoint_every=5, hold_at=(40,))
    daemon = base.start()
    wait_until(lambda: base.is_at_step(12))
    daemon.send_signal(signal.SIGKILL)
    daemon.communicate()
    base.let_go(40)
    base.command("stop")
    later = time.time() + 3650 * DAY
    os.utime(base.paths.control("stop"), (later, later))
    base.jump(JUMPS["ten years back"])
    base.drop("b.jsonl")
    log = base.run()
    assert "Ignored a .stop older than this daemon" in log
    assert base.inputs_of_versions() == ["a.jsonl", "b.jsonl"]
    assert os.readlink(base.paths.current) == "versions/v0002"
    assert VersionStore(base.paths).get("v0002").facts.parent == "v0001"
