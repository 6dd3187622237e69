"""Copies of versions, each verified by hash: on a second disk, or aside in models/backups/.

Deleting moves a version aside, restoring brings it back under its own name. Every step is a rename of a
whole folder, so that a process may be killed between any two and the command be given again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock

import durable
from config import BackupConfig, Paths
from errors import EnvironmentNotReady, IntegrityError, UsageError
from training.full_models import read_full_model
from training.protection import Protection
from training.versions import Version, VersionStore, canonical_name, read_version, version_names

logger = logging.getLogger(__name__)

LOCK_SECONDS = 30.0
FULL_MODELS = "consolidated"
"""Folder of a backup root for the full models its versions stand on."""


@dataclass(frozen=True)
class Examined:
    """What was found of one sealed folder."""

    folder: Path
    files: int
    size_bytes: int
    damage: Sequence[str]


@contextlib.contextmanager
def housekeeping(paths: Paths, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Let one process at a time copy, merge or remove versions; clear what an interrupted one left."""
    lock = filelock.FileLock(paths.housekeeping_lock, timeout=seconds, fallback_to_soft=False)
    try:
        with lock:
            _remove_leftovers(paths)
            yield
    except filelock.Timeout as error:
        raise EnvironmentNotReady(
            f"{lock.lock_file}: another process copies, merges or removes versions; try again when it is done"
        ) from error


class Backups:
    """All copies of the versions of a base folder."""

    def __init__(self, paths: Paths, store: VersionStore, config: BackupConfig) -> None:
        self._paths = paths
        self._store = store
        self.root: Path | None = paths.base / Path(config.root).expanduser() if config.root else None

    @property
    def target(self) -> Path:
        """Where copies are made: the configured root, else beside the versions.

        Raises EnvironmentNotReady when the root is not there: its disk is not mounted, and making the
        folder would fill the disk below it.
        """
        if self.root is None:
            durable.make_folder(self._paths.backups)
            return self._paths.backups
        if not self.root.is_dir():
            raise EnvironmentNotReady(
                f"backup.root: {self.root}: found no such folder; mount its disk, or make the folder"
            )
        return self.root

    def missing(self) -> list[Version]:
        """Return the versions that have no copy in the configured root."""
        if self.root is None:
            return []
        there = version_names(self.target)
        return [version for version in self._store.list() if version.name not in there]

    def has_copy(self, version: Version) -> bool:
        """Tell whether a verified copy lies in the configured root."""
        if self.root is None:
            return False
        copy = self.root / version.name
        manifest = copy / durable.MANIFEST
        is_same = manifest.is_file() and durable.sha256_file(manifest) == version.manifest_sha256
        return is_same and durable.is_sealed(copy)

    def back_up(self, version: Version) -> Path:
        """Make sure that `target` holds a verified copy of a version and of the full model under it.

        A damaged copy is replaced. Raises UsageError when what is there is another version of that name.
        """
        self._store.verify(version)
        target = self.target
        if version.facts.consolidated is not None and self.root is not None:
            model = self._paths.consolidated / version.facts.consolidated
            _copy(model, target / FULL_MODELS / model.name)
        _copy(version.folder, target / version.name)
        return target / version.name

    def delete(self, reference: str) -> Path:
        """Move a version to models/backups/, verified; UsageError names the rule that forbids it."""
        with self._store.locked():
            version = self._store.get(reference)
            reason = Protection(self._paths, self._store, self.has_copy).reason_to_keep(version)
            if reason is not None:
                raise UsageError(f"not deleted: {reason}")
            return self.put_aside(version)

    def put_aside(self, version: Version) -> Path:
        """Move a version that may go to models/backups/; the caller holds the store's lock."""
        self._store.verify(version)
        durable.make_folder(self._paths.backups)
        aside = self._paths.backups / version.name
        if aside.exists():
            durable.remove_tree(aside)
        _move(version.folder, aside)
        logger.info("Moved %s to %s", version.name, aside)
        return aside

    def restore(self, reference: str) -> Version:
        """Bring a version back from a verified copy; one that is there but damaged is replaced."""
        name = canonical_name(reference)
        if name is None:
            raise UsageError(f"no version {reference!r}; expected a name such as v0003")
        with self._store.locked():
            if name not in version_names(self._paths.versions):
                self._bring_back(name)
            elif durable.is_sealed(self._paths.versions / name):
                self._restore_full_model(self._store.get(name))
                return self._store.get(name)
            else:
                self._replace(name)
            version = self._store.get(name)
            self._restore_full_model(version)
            logger.info("Restored %s", name)
            return version

    def examine(self, references: Sequence[str] = ()) -> Iterator[Examined]:
        """Check every byte of versions, their copies and full models; all of them without `references`."""
        names = [_known_name(self._paths, self.root, reference) for reference in references]
        for folder in self._sealed_folders():
            if not names or folder.name in names:
                yield _examine(folder)

    def _sealed_folders(self) -> Iterator[Path]:
        places = [self._paths.versions, self._paths.backups, self._paths.consolidated]
        places += [self.root, self.root / FULL_MODELS] if self.root is not None else []
        for place in places:
            yield from (place / name for name in version_names(place))

    def _bring_back(self, name: str) -> None:
        """Move or copy a version to where it is missing."""
        source = self._sound_copy(name)
        if source.parent == self._paths.backups:
            _move(source, self._paths.versions / name)
        else:
            staging = self._staging(name)
            durable.copy_sealed(source, staging)
            durable.publish_folder(staging, self._paths.versions / name)

    def _replace(self, name: str) -> None:
        """Put a copy in the place of a damaged version; the copy is whole before the damaged one goes."""
        staging = self._staging(name)
        durable.copy_sealed(self._sound_copy(name), staging)
        damaged = self._paths.versions / f".damaged-{name}{durable.PARTIAL_SUFFIX}"
        durable.move_folder(self._paths.versions / name, damaged)
        durable.publish_folder(staging, self._paths.versions / name)
        durable.remove_tree(damaged)

    def _restore_full_model(self, version: Version) -> None:
        name = version.facts.consolidated
        if name is None or durable.is_sealed(self._paths.consolidated / name):
            return
        if self.root is None:
            raise IntegrityError(
                f"{self._paths.consolidated / name}: the full model under {version.name} is not whole, and "
                "no backup.root is configured to restore it from; roll back to a version before it"
            )
        _copy(self.root / FULL_MODELS / name, self._paths.consolidated / name)

    def _sound_copy(self, name: str) -> Path:
        """Return a copy of a version whose every byte is right."""
        places = [self._paths.backups, *([self.root] if self.root is not None else [])]
        found: list[str] = []
        for copy in (place / name for place in places if (place / name).is_dir()):
            damage = _examine(copy).damage
            if not damage:
                return copy
            found += damage
        what = "; ".join(found) or f"none in {' or '.join(map(str, places))}"
        raise UsageError(f"{name} cannot be restored, no sound copy of it was found: {what}")

    def _staging(self, name: str) -> Path:
        # Not the name of a version in the making: a worker that publishes removes those.
        return self._paths.versions / f".restored-{name}{durable.PARTIAL_SUFFIX}"


def _refuse_stranger(source: Path, destination: Path) -> None:
    manifests = [(folder / durable.MANIFEST).read_bytes() for folder in (source, destination)]
    if manifests[0] != manifests[1]:
        raise UsageError(
            f"{destination}: found another {source.name}, expected a copy of {source}; "
            "give each base folder a backup.root of its own"
        )


def _copy(source: Path, destination: Path) -> None:
    """Make `destination` a verified copy of a sealed folder; a damaged one is replaced."""
    if destination.exists():
        if durable.is_sealed(destination):
            _refuse_stranger(source, destination)
            return
        logger.warning("Replaced the damaged copy %s", destination)
        durable.remove_tree(destination)
    durable.make_folder(destination.parent)
    staging = destination.with_name(f".{destination.name}{durable.PARTIAL_SUFFIX}")
    durable.copy_sealed(source, staging)
    durable.publish_folder(staging, destination)
    logger.info("Copied %s to %s", source, destination)


def _move(source: Path, destination: Path) -> None:
    """Move a sealed folder by one rename, or by a verified copy where it goes to another file system."""
    try:
        durable.move_folder(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        staging = destination.with_name(f".restored-{destination.name}{durable.PARTIAL_SUFFIX}")
        durable.copy_sealed(source, staging)
        durable.publish_folder(staging, destination)
        durable.remove_tree(source)


def _examine(folder: Path) -> Examined:
    try:
        files = durable.read_manifest(folder)["files"]
        damage = list(durable.find_damage(folder))
        (read_full_model if folder.parent.name == FULL_MODELS else read_version)(folder)
    except IntegrityError as error:
        return Examined(folder, 0, 0, [str(error)])
    return Examined(folder, len(files), sum(file["size_bytes"] for file in files.values()), damage)


def _known_name(paths: Paths, root: Path | None, reference: str) -> str:
    """Return the name of a version that exists, be it only as a copy."""
    name = canonical_name(reference)
    if reference == "current" and paths.current.is_symlink():
        name = paths.current.readlink().name
    places = [paths.versions, paths.backups, *([root] if root is not None else [])]
    known = sorted({known for place in places for known in version_names(place)})
    if name is None or name not in known:
        raise UsageError(f"no version {reference!r}; expected one of: {', '.join(known) or 'none'}")
    return name


def _remove_leftovers(paths: Paths) -> None:
    """Remove what a process that was killed had half copied, half merged or half removed."""
    leftovers = [
        *paths.backups.glob(f".*{durable.PARTIAL_SUFFIX}"),
        *paths.consolidated.glob(f".*{durable.PARTIAL_SUFFIX}"),
        *paths.versions.glob(f".restored-*{durable.PARTIAL_SUFFIX}"),
        *paths.versions.glob(f".damaged-*{durable.PARTIAL_SUFFIX}"),
    ]
    for leftover in leftovers:
        logger.info("Removed the unfinished %s", leftover)
        durable.remove_tree(leftover)
