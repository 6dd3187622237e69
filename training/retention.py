"""What is removed when versions, backups and finished runs take more than `retention.max_bytes`.

First what exists twice, then what is older; never a version that is current, best, promoted, one of the
last, or referred to by another version, a run or a full model. A plan is made before anything goes, and
each removal is one rename, so that it may be cut short anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import durable
from config import Paths, load_config
from errors import IntegrityError
from training import checkpoints
from training.backups import Backups
from training.jobs import Job, JobStore
from training.protection import Protection
from training.versions import Version, VersionStore, read_version, version_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Removal:
    """One folder that may go."""

    folder: Path
    size_bytes: int
    reason: str
    version: Version | None = None
    """Set when the folder is a version that is not a copy."""


@dataclass(frozen=True)
class Plan:
    """What takes how much, and what goes, in this order."""

    used_bytes: int
    max_bytes: int
    removals: Sequence[Removal]

    @property
    def freed_bytes(self) -> int:
        return sum(removal.size_bytes for removal in self.removals)

    @property
    def excess_bytes(self) -> int:
        """What is still above the limit when all that may go is gone."""
        return max(0, self.used_bytes - self.freed_bytes - self.max_bytes)


class Retention:
    """Keeps a base folder within a number of bytes."""

    def __init__(self, paths: Paths, store: VersionStore, backups: Backups, max_bytes: int) -> None:
        self._paths = paths
        self._store = store
        self._backups = backups
        self._max_bytes = max_bytes

    def plan(self) -> Plan:
        """Return what would be removed now; changes nothing."""
        used = sum(size_of(folder) for folder in self._counted())
        removals: list[Removal] = []
        excess = used - self._max_bytes
        if excess > 0:
            for removal in self._removable():
                removals.append(removal)
                excess -= removal.size_bytes
                if excess <= 0:
                    break
        return Plan(used, self._max_bytes, removals)

    def carry_out(self) -> Plan:
        """Remove what the plan says and return it; the caller holds the housekeeping lock."""
        plan = self.plan()
        for removal in plan.removals:
            self._remove(removal)
            logger.info(
                "Removed %s, %d bytes (retention.max_bytes): %s",
                *(removal.folder.relative_to(self._paths.base), removal.size_bytes, removal.reason),
            )
        if plan.excess_bytes:
            logger.warning(
                "Versions, backups and runs take %d bytes more than retention.max_bytes (%d), and all of it "
                "is still needed; raise the limit, or delete versions by hand",
                *(plan.excess_bytes, plan.max_bytes),
            )
        return plan

    def _remove(self, removal: Removal) -> None:
        if removal.version is None:
            durable.remove_tree(removal.folder)
            return
        with self._store.locked():
            durable.remove_tree(self._backups.put_aside(removal.version))

    def _counted(self) -> Iterator[Path]:
        for place in (self._paths.versions, self._paths.backups, self._paths.consolidated):
            yield from (place / name for name in version_names(place))
        for job in self._finished_jobs():
            yield from _checkpoint_folders(self._paths.run(job.job_id).folder)

    def _removable(self) -> Iterator[Removal]:
        """Yield what may go: what exists twice first, in each kind the oldest first."""
        yield from self._redundant_checkpoints()
        yield from self._passed_checkpoints()
        yield from self._old_backups()
        yield from self._unused_full_models()
        yield from self._held_versions()

    def _finished_jobs(self) -> list[Job]:
        return [job for job in JobStore(self._paths).all() if job.state == "finished"]

    def _redundant_checkpoints(self) -> Iterator[Removal]:
        """Yield the checkpoints of runs that became a version, which holds the best of them."""
        by_job = {version.facts.job_id: version for version in self._store.list()}
        for job in self._finished_jobs():
            folders = _checkpoint_folders(self._paths.run(job.job_id).folder)
            version = by_job.get(job.job_id)
            if version is not None and folders and durable.is_sealed(version.folder):
                for folder in folders:
                    yield Removal(folder, size_of(folder), f"{version.name} holds what came of this run")

    def _passed_checkpoints(self) -> Iterator[Removal]:
        """Yield the checkpoints of other finished runs, but for the best and the last of each."""
        published = {version.facts.job_id for version in self._store.list()}
        for job in self._finished_jobs():
            run = self._paths.run(job.job_id).folder
            if job.job_id in published or not any(_checkpoint_folders(run)):
                continue
            found = checkpoints.list_checkpoints(run, verify=False)
            selection = load_config(run).scoring.selection
            chosen = (checkpoints.best(found, selection), checkpoints.newest(found))
            kept = {checkpoint.folder for checkpoint in chosen if checkpoint is not None}
            for folder in _checkpoint_folders(run):
                if folder not in kept:
                    yield Removal(folder, size_of(folder), "neither the best nor the last of its run")

    def _old_backups(self) -> Iterator[Removal]:
        """Yield what need not lie in models/backups/: copies of sound versions, then deleted versions.

        A deleted version that was promoted, or made within a day, stays unless it has a verified copy.
        """
        protection = Protection(self._paths, self._store, self._backups.has_copy)
        there = version_names(self._paths.versions)
        names = version_names(self._paths.backups)
        for name in (name for name in names if name in there):
            if durable.is_sealed(self._paths.versions / name):
                folder = self._paths.backups / name
                yield Removal(folder, size_of(folder), f"a copy of {name}")
        for version in self._read(self._paths.backups / name for name in names if name not in there):
            is_kept = version.facts.decision == "promote" and not self._backups.has_copy(version)
            if not is_kept and protection.youth_of(version) is None:
                yield Removal(version.folder, size_of(version.folder), f"{version.name} was deleted")

    def _unused_full_models(self) -> Iterator[Removal]:
        """Yield the full models that no version, kept or put aside, stands on."""
        places = (self._paths.versions, self._paths.backups)
        folders = [place / name for place in places for name in version_names(place)]
        versions = self._read(folders)
        if len(versions) < len(folders):
            return  # a damaged one may stand on any of them
        used = {version.facts.consolidated for version in versions}
        for name in version_names(self._paths.consolidated):
            if name not in used:
                folder = self._paths.consolidated / name
                yield Removal(folder, size_of(folder), "no version stands on this full model")

    @staticmethod
    def _read(folders: Iterable[Path]) -> list[Version]:
        """Return the versions in these folders; one that is damaged is logged, left out and never removed."""
        versions = []
        for folder in folders:
            try:
                versions.append(read_version(folder))
            except IntegrityError as error:
                logger.error("Left alone %s: %s", folder, error)
        return versions

    def _held_versions(self) -> Iterator[Removal]:
        """Yield versions that were held and that no rule protects."""
        protection = Protection(self._paths, self._store, self._backups.has_copy)
        for version in self._store.list():
            if version.facts.decision == "hold" and protection.reason_to_keep(version) is None:
                yield Removal(version.folder, size_of(version.folder), "held, and nothing needs it", version)


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def _checkpoint_folders(run: Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first, whole or not."""
    folders = [path for path in run.glob("checkpoint-*") if checkpoints.CHECKPOINT_NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))
