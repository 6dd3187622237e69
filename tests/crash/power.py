"""Power cuts: what must hold on the disk that one leaves, and after the daemon has gone on from it.

A cut is a disk and what the daemon had said by then. It is written to an image, mounted, and judged three
times: as it is, after a daemon has worked until idle, and after another, which must find nothing to do.
"""

from __future__ import annotations

import contextlib
import queue
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.crash.disks import Disk, FileSystem, MountFailed, mounted, write_disk
from tests.crash.invariants import (
    Violation,
    fingerprint,
    reader_violations,
    violations,
    world_violations,
)
from tests.crash.life import Life
from tests.crash.nursery import Nursery
from tests.crash.startup import Startup

WORLD = "world"
"""Folder of a disk in which a life is led."""


@dataclass(frozen=True)
class Cut:
    """A disk as a power cut left it."""

    file_system: FileSystem
    point: str
    disk: Disk
    said: str
    """What the daemon had printed by then."""
    bug: str | None = None
    """The bug planted in the daemon that led this life, and in the one that goes on from it."""

    def __str__(self) -> str:
        return f"{self.file_system.name}, power cut at {self.point}"


class Judge:
    """Judges one cut after the other, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._image = folder / "disk.img"
        self._mount_point = folder / "mnt"
        self._nursery = Nursery()

    def close(self) -> None:
        self._nursery.close()

    def judge(self, cut: Cut) -> list[Violation]:
        """Return what is wrong with a cut, at most once each."""
        write_disk(cut.disk, self._image, cut.file_system.size_bytes)
        try:
            with mounted(cut.file_system, self._image, self._mount_point):
                return list(dict.fromkeys(self._found(Life(self._mount_point / WORLD), cut)))
        except MountFailed as error:
            return [Violation("lost", f"the disk cannot be mounted: {error}")]
        finally:
            self._image.unlink()

    def _found(self, life: Life, cut: Cut) -> Iterator[Violation]:
        yield from reader_violations(life.base, cut.said)
        yield from self._go_on(life, cut)
        before = fingerprint(life.base)
        yield from self._go_on(life, cut)
        after = fingerprint(life.base)
        changed = sorted(name for name in before | after if before.get(name) != after.get(name))
        if changed:
            yield Violation("half", f"a daemon with nothing to do changed {changed}")

    def _go_on(self, life: Life, cut: Cut) -> Iterator[Violation]:
        code = life.run(self._nursery, Startup(bug=cut.bug))
        if code != 0:
            last = "".join(life.said().splitlines(keepends=True)[-1:])
            yield Violation("half", f"the daemon ended with {code}: {last}")
        yield from violations(life.base, life.drops)
        yield from world_violations(life)


@contextlib.contextmanager
def judges(folder: Path, count: int) -> Iterator[Sequence[Judge]]:
    """Offer `count` judges that work side by side."""
    made = [Judge(folder / f"judge-{number}") for number in range(count)]
    try:
        yield made
    finally:
        for judge in made:
            judge.close()


def judge_all(cuts: Iterable[Cut], judges: Sequence[Judge]) -> Iterator[tuple[Cut, list[Violation]]]:
    """Have all cuts judged and yield each with what was found."""
    free: queue.SimpleQueue[Judge] = queue.SimpleQueue()
    for judge in judges:
        free.put(judge)

    def judged(cut: Cut) -> tuple[Cut, list[Violation]]:
        judge = free.get()
        try:
            return cut, judge.judge(cut)
        finally:
            free.put(judge)

    with ThreadPoolExecutor(len(judges)) as pool:
        yield from pool.map(judged, cuts)


def sample(cuts: Sequence[Cut], count: int | None, draw: random.Random) -> list[Cut]:
    """Return `count` of the cuts in their order, or all of them."""
    if count is None or count >= len(cuts):
        return list(cuts)
    return [cuts[index] for index in sorted(draw.sample(range(len(cuts)), count))]
