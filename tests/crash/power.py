"""Power cuts: what must hold on the disk that one leaves, and after the daemon has gone on from it.

A cut is a disk and what the daemon had said by then. It is written to an image, mounted, and judged three
times: as it is, after a daemon has worked until idle, and after another, which must find nothing to do.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.disks import Disk, FileSystem, MountFailed, mounted, write_disk
from tests.crash.invariants import Violation, reader_violations
from tests.crash.life import Life
from tests.crash.nursery import Nursery
from tests.crash.startup import Startup
from tests.crash.strike import judge

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


def judge_cut(cut: Cut, folder: Path, nursery: Nursery) -> list[Violation]:
    """Return what is wrong with a cut; its disk is mounted below `folder`."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        image = Path(place, "disk.img")
        write_disk(cut.disk, image, cut.file_system.size_bytes)
        try:
            with mounted(cut.file_system, image, Path(place, "mnt")) as mount_point:
                return _judge_world(Life(mount_point / WORLD), cut, nursery)
        except MountFailed as error:
            return [Violation("lost", f"the disk cannot be mounted: {error}")]


def _judge_world(life: Life, cut: Cut, nursery: Nursery) -> list[Violation]:
    found = reader_violations(life.base, cut.said)
    code = life.run(nursery, Startup(bug=cut.bug))
    if code != 0:
        last = "".join(life.said().splitlines()[-1:])
        found.append(Violation("half", f"the daemon that went on ended with {code}: {last}"))
    return found + judge(life, nursery, cut.bug)


def sample(cuts: Sequence[Cut], count: int | None, draw: random.Random) -> list[Cut]:
    """Return `count` of the cuts in their order, or all of them."""
    if count is None or count >= len(cuts):
        return list(cuts)
    return [cuts[index] for index in sorted(draw.sample(range(len(cuts)), count))]
