"""Known bugs, put into the product's code at run time, that the crash tests must catch.

Each replaces functions of the product in the daemon it is planted in and in the workers that daemon forks;
the product has no switch for any of them.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import daemon
import durable
from monitoring.events import Event, OutcomeEvent, PhaseEvent
from tests.crash.kills import with_both
from tests.crash.points import Point
from tests.crash.strike import Range, Say, Strike, carry_out, kill, open_range, record
from tests.crash.tally import Tally
from training.filing import file_away
from training.job_queue import ended
from training.jobs import Job
from training.versions import VersionStore

Replacement = tuple[object, str, object]
"""An object, the name of one of its attributes, and what it is replaced by."""


@dataclass(frozen=True)
class Bug:
    """A mistake in the order of things, or a check left out."""

    patches: Callable[[], Sequence[Replacement]]
    shows_at: str | None
    """Pattern of the points at which a kill shows it; None when only a power cut does."""


def plant(name: str) -> None:
    """Put one bug into this process and those it forks."""
    for owner, attribute, replacement in BUGS[name].patches():
        assert hasattr(owner, attribute), f"{owner} has no {attribute}: there is nothing to replace"
        setattr(owner, attribute, replacement)


def no_file_fsync() -> Sequence[Replacement]:
    """A file gets its name before its bytes are on the disk."""
    fsync = os.fsync

    def only_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    return [(os, "fsync", only_folders)]


def no_folder_fsync() -> Sequence[Replacement]:
    """A name is not on the disk when it is said to be."""
    return [(durable, "fsync_folder", lambda folder: None)]


def pointer_before_commit() -> Sequence[Replacement]:
    """The link `current` moves before the version is there."""
    publish_folder = durable.publish_folder

    def publish(staging: Path, destination: Path) -> None:
        current = destination.parent.parent / "current"
        durable.point_symlink(current, f"{destination.parent.name}/{destination.name}")
        publish_folder(staging, destination)

    return [(durable, "publish_folder", publish)]


def done_before_commit() -> Sequence[Replacement]:
    """A job is put away as completed when its version is about to be published."""
    on_event = daemon.Daemon._on_event

    def hasty(self: daemon.Daemon, line: bytes, event: Event) -> None:
        on_event(self, line, event)
        if isinstance(event, PhaseEvent) and event.phase == "publishing":
            assert self._running is not None
            job = ended(self._running, OutcomeEvent(outcome="completed"))
            file_away(self._paths, job)
            self._store.save(job.model_copy(update={"state": "finished"}))

    return [(daemon.Daemon, "_on_event", hasty)]


def version_in_place() -> Sequence[Replacement]:
    """A version is written file by file under its final name."""

    def publish(staging: Path, destination: Path) -> None:
        shutil.copytree(staging, destination)
        durable.remove_tree(staging)

    return [(durable, "publish_folder", publish)]


def no_seen_check() -> Sequence[Replacement]:
    """Nobody asks whether a job became a version before it is trained."""
    version_of, version_of_job = daemon.Daemon._version_of, VersionStore.version_of_job
    pid = os.getpid()

    def only_of_running(self: daemon.Daemon, job: Job) -> str | None:
        return version_of(self, job) if job.state == "running" else None

    def only_in_daemon(self: VersionStore, job_id: str) -> object:
        return version_of_job(self, job_id) if os.getpid() == pid else None

    return [(daemon.Daemon, "_version_of", only_of_running), (VersionStore, "version_of_job", only_in_daemon)]


def no_same_inode_check() -> Sequence[Replacement]:
    """A file that a power cut left under both names is renamed onto itself, which does nothing."""

    def move(source: Path, destination: Path) -> None:
        os.rename(source, destination)
        durable.fsync_folder(destination.parent)
        durable.fsync_folder(source.parent)

    return [(durable, "move_file", move)]


BUGS: dict[str, Bug] = {
    "no_file_fsync": Bug(no_file_fsync, None),
    "no_folder_fsync": Bug(no_folder_fsync, None),
    "no_same_inode_check": Bug(no_same_inode_check, None),
    "pointer_before_commit": Bug(
        pointer_before_commit, r"^daemon and worker-\d renameat2#1 models/versions/v"
    ),
    "done_before_commit": Bug(
        done_before_commit, r"^daemon and worker-\d (renameat2|fsync)#1 models/versions/"
    ),
    "version_in_place": Bug(version_in_place, r"^daemon and worker-\d openat#1 models/versions/v"),
    "no_seen_check": Bug(no_seen_check, r"^daemon and worker-\d fsync#\d models/versions$"),
}
CAUGHT_BY_KILLS = tuple(name for name, bug in BUGS.items() if bug.shows_at is not None)


def run(say: Say, seed: int = 0) -> Tally:
    """Plant every bug that a kill can show, and count those that are caught."""
    tally = Tally()
    with open_range() as range_:
        for name in CAUGHT_BY_KILLS:
            tally.planted_bugs += 1
            caught_at = catch(range_, name, say, seed)
            tally.planted_bugs_caught += caught_at is not None
            say(f"planted: {name} {'NOT CAUGHT' if caught_at is None else f'caught at {caught_at}'}")
    return tally


def catch(range_: Range, name: str, say: Say, seed: int = 0) -> str | None:
    """Kill lives with a planted bug until one is violated; return that point with what was found."""
    pattern = BUGS[name].shows_at
    assert pattern is not None, f"{name} is shown by power cuts alone"
    with range_.nursery() as nursery:
        points = with_both(record(nursery, bug=name).points)
    likely = [point for point in points if re.search(pattern, str(point))]
    random.Random(seed).shuffle(likely)
    for start in range(0, len(likely), range_.size):
        tally = Tally()
        batch: list[Point] = likely[start : start + range_.size]
        strikes = [Strike(str(point), partial(kill, points=(point,), bug=name)) for point in batch]
        carry_out(range_, strikes, tally, lambda line: None)
        if tally.failures:
            return tally.failures[0]
    return None
