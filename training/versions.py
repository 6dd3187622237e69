"""Versions: immutable, self-describing folders ``models/versions/vNNNN``, and which of them is current.

The rename that makes a version folder appear is the commit point of a job. ``models/current.json`` says
which version was chosen, why, and what was the newest then; the link ``models/current`` follows it. Both
are rolled forward from the manifests after a crash. Whether a version is promoted is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock
from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from config import Paths
from errors import EnvironmentNotReady, IntegrityError, UsageError
from training.version_facts import HeldOutResult, RecordCounts, VersionFacts, model_card
from training.version_report import VersionReport

__all__ = ["CurrentRecord", "HeldOutResult", "RecordCounts", "Version", "VersionFacts", "VersionStore"]

logger = logging.getLogger(__name__)

VERSION_NAME = re.compile(r"v(\d{4,})")
LOCK_SECONDS = 30.0


@dataclass(frozen=True)
class Version:
    """One published version."""

    name: str
    folder: Path
    facts: VersionFacts
    manifest_sha256: str

    @property
    def number(self) -> int:
        return _number(self.name)


class CurrentRecord(BaseModel):
    """The document ``models/current.json``: the choice that the link `current` follows."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    version: str
    manifest_sha256: str
    pinned: bool
    """Chosen by a person; stands until a version newer than `newest` is promoted."""
    reason: str
    at: datetime
    newest: str
    """The newest version when the choice was made: only later ones may replace it by themselves."""


VersionReference = Version | str | int


class VersionStore:
    """All versions of a base folder."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._record_file = paths.current_record
        self._lock = filelock.FileLock(paths.versions_lock, timeout=LOCK_SECONDS, fallback_to_soft=False)

    def list(self) -> Sequence[Version]:
        """Return every version, oldest first; a folder whose manifest is damaged is logged and left out."""
        versions = []
        for name in self._names():
            try:
                versions.append(self._read(name))
            except IntegrityError as error:
                logger.error("Left out version %s: %s", name, error)
        return versions

    def get(self, reference: str | int) -> Version:
        """Return a version by its name (``v0003``), its number, or ``current``; UsageError when unknown."""
        if reference == "current":
            version = self.current()
            if version is None:
                raise UsageError("there is no current version yet; drop a file into inbox/ and train one")
            return version
        name = canonical_name(reference)
        if name is None or name not in self._names():
            known = ", ".join(self._names()) or "none"
            raise UsageError(f"no version {str(reference)!r}; expected 'current' or one of: {known}")
        return self._read(name)

    def current(self) -> Version | None:
        """Return the version that the link `current` points to, or None when nothing was promoted yet.

        Raises IntegrityError when the link points to something that is not a whole version.
        """
        name = self._linked_name()
        return None if name is None else self._read(name)

    def next_name(self) -> str:
        """Return the name of the next version; names of removed versions that are still known stay taken."""
        known = {*self._names(), *self._mentioned_names(), *version_names(self._paths.backups)}
        return f"v{max(map(_number, known), default=0) + 1:04d}"

    def stage(self) -> Path:
        """Return a fresh, empty folder to put a version together in; what a crash left there is removed."""
        self.remove_unfinished()
        staging = self._paths.versions / f".{self.next_name()}{durable.PARTIAL_SUFFIX}"
        durable.make_folder(staging)
        return staging

    def remove_unfinished(self) -> None:
        """Remove what a worker that is gone has left of a version."""
        for leftover in self._paths.versions.glob(f".v*{durable.PARTIAL_SUFFIX}"):
            logger.info("Removed the unfinished version %s", leftover.name)
            durable.remove_tree(leftover)

    def publish(self, staging: Path, facts: VersionFacts, report: VersionReport | None = None) -> Version:
        """Make the staged folder a version: add its card, with a table of `report`, seal and rename it.

        The rename is the commit. A job is published once: when a version of it exists already, that one is
        returned and the staged folder is removed. `current` does not move.
        """
        existing = self.version_of_job(facts.job_id)
        if existing is not None:
            logger.warning("Job %s is %s already; removed its second copy", facts.job_id, existing.name)
            durable.remove_tree(staging)
            return existing
        name = self.next_name()
        named = facts.model_copy(update={"version": name})
        durable.write_bytes(staging / "README.md", model_card(named, report).encode())
        durable.seal_folder(staging, named.model_dump(mode="json"))
        durable.publish_folder(staging, self._paths.versions / name)
        logger.info(
            "Published %s of job %s: %s, %s", name, facts.job_id, facts.decision, facts.decision_reason
        )
        for reason in facts.decision_reasons:
            logger.info("Against %s: %s", name, reason)
        return self._read(name)

    def succeed(self, staging: Path, facts: VersionFacts, of: Version) -> Version:
        """Publish a version that takes the place of `of` and make it current, unless `of` no longer is."""
        with self.locked():
            found = self._linked_name()
            if found != of.name:
                raise UsageError(f"current moved from {of.name} to {found} meanwhile; try again")
            version = self.publish(staging, facts)
            return self._choose(version, version.facts.decision_reason, pinned=False)

    def promote(self, version: VersionReference, reason: str, *, pinned: bool = False) -> Version:
        """Make a version current, after checking each of its bytes; safe to repeat.

        `pinned` marks a person's choice. Raises IntegrityError when the version is damaged.
        """
        with self.locked():
            return self._choose(self._resolve(version), reason, pinned=pinned)

    def rollback(self, to: VersionReference | None = None) -> Version:
        """Make an earlier version current and pin it; without `to`, the one that `current` continues."""
        with self.locked():
            target = self._parent_of_current() if to is None else self._resolve(to)
            return self._choose(target, f"rolled back from {self._linked_name()}", pinned=True)

    def roll_forward(self) -> Version | None:
        """Finish what a crash interrupted, and return the version that is current then; safe to repeat.

        The newest version that was to be promoted becomes current, unless the choice on record was made
        later than that. A damaged version is passed over with an error in the log.
        """
        with self.locked():
            record = self.record()
            for version in self._heirs(record):
                kept = record if record is not None and record.version == version.name else None
                if kept is not None and self._linked_name() == version.name:
                    return version
                reason = kept.reason if kept is not None else version.facts.decision_reason
                try:
                    return self._choose(version, reason, pinned=kept is not None and kept.pinned)
                except IntegrityError as error:
                    logger.error("Cannot make %s current: %s", version.name, error)
            return None

    def verify(self, version: VersionReference) -> None:
        """Check every byte of a version against its manifest; raise IntegrityError naming what differs."""
        checked = self._resolve(version)
        durable.verify_folder(checked.folder)
        record = self.record()
        if record is None or record.version != checked.name:
            return
        if record.manifest_sha256 != durable.sha256_file(checked.folder / durable.MANIFEST):
            raise IntegrityError(
                f"{checked.folder / durable.MANIFEST}: changed since {checked.name} became current; "
                "restore the folder from a backup or roll back to another version"
            )

    def version_of_job(self, job_id: str) -> Version | None:
        """Return the version that a job became, or None."""
        return next((version for version in self.list() if version.facts.job_id == job_id), None)

    def record(self) -> CurrentRecord | None:
        """Return the choice behind `current`; None when there was none, or (logged) when it is damaged."""
        if not self._record_file.exists():
            return None
        try:
            return CurrentRecord.model_validate(durable.read_json(self._record_file))
        except (IntegrityError, ValidationError) as error:
            logger.error("Ignored a damaged %s: %s", self._record_file.name, error)
            return None

    def _choose(self, version: Version, reason: str, *, pinned: bool) -> Version:
        """Write the choice, then move the link: after a crash in between, `roll_forward` moves it."""
        self.verify(version)
        before = self._linked_name()
        record = CurrentRecord(
            version=version.name,
            manifest_sha256=version.manifest_sha256,
            pinned=pinned,
            reason=reason,
            at=datetime.now(UTC),
            newest=self._names()[-1],
        )
        durable.write_json(self._record_file, record.model_dump(mode="json"))
        durable.point_symlink(self._paths.current, f"{self._paths.versions.name}/{version.name}")
        logger.info("Moved current from %s to %s: %s", before or "none", version.name, reason)
        return version

    def _heirs(self, record: CurrentRecord | None) -> Iterator[Version]:
        """Yield who may be current, best first: what came after the choice on record, then that choice.

        What came after a person's choice must continue it: of another version's heir nobody knows whether it
        is worse than what that person chose.
        """
        promoted = [version for version in reversed(self.list()) if version.facts.decision == "promote"]
        if record is not None:
            for version in promoted:
                if version.number <= _number(record.newest):
                    continue
                if not record.pinned or self._continues(version, record):
                    yield version
                else:
                    logger.warning(
                        "%s was tested against %s and not against %s, which a person made current; "
                        "`trainbox promote %s` makes it current",
                        *(version.name, version.facts.parent, record.version, version.name),
                    )
            with contextlib.suppress(UsageError, IntegrityError):
                yield self.get(record.version)
        yield from promoted

    def _continues(self, version: Version, record: CurrentRecord) -> bool:
        """Tell whether a version was trained from the one chosen, or from what was since then."""
        known = {each.name: each for each in self.list()}
        at: Version | None = version
        while at is not None and at.number > _number(record.newest):
            at = known.get(at.facts.parent or "")
        return at is not None and at.name == record.version

    def _parent_of_current(self) -> Version:
        current = self.get("current")
        if current.facts.parent is None:
            raise UsageError(
                f"{current.name} was trained from the base model, there is no version before it; "
                "name the version to go to"
            )
        return self.get(current.facts.parent)

    def _resolve(self, version: VersionReference) -> Version:
        return version if isinstance(version, Version) else self.get(version)

    def _read(self, name: str) -> Version:
        return read_version(self._paths.versions / name)

    def _names(self) -> Sequence[str]:
        return version_names(self._paths.versions)

    def _mentioned_names(self) -> Iterator[str]:
        """Yield the names that manifests and the choice on record refer to."""
        yield from (version.facts.parent for version in self.list() if version.facts.parent is not None)
        record = self.record()
        if record is not None:
            yield from (record.version, record.newest)

    def _linked_name(self) -> str | None:
        try:
            name = os.path.basename(os.readlink(self._paths.current))
        except FileNotFoundError:
            return None
        if VERSION_NAME.fullmatch(name) is None:
            raise IntegrityError(
                f"{self._paths.current}: points to {name!r}, expected a version; promote one"
            )
        return name

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the daemon and a person's command from moving `current`, or a version, at the same moment."""
        try:
            with self._lock:
                yield
        except filelock.Timeout as error:
            raise EnvironmentNotReady(
                f"{self._lock.lock_file}: held by another process for {LOCK_SECONDS:.0f} s; try again"
            ) from error


def read_version(folder: Path) -> Version:
    """Return the version, or the copy of one, in `folder`; its files are not compared with its manifest."""
    manifest = durable.read_manifest(folder)
    try:
        facts = VersionFacts.model_validate(manifest)
    except ValidationError as error:
        raise IntegrityError(f"{folder / durable.MANIFEST}: not a version's manifest: {error}") from error
    if facts.version != folder.name:
        raise IntegrityError(f"{folder}: its manifest says {facts.version!r}; the folder was renamed")
    return Version(folder.name, folder, facts, durable.sha256_file(folder / durable.MANIFEST))


def version_names(folder: Path) -> Sequence[str]:
    """Return the names of the versions that lie in `folder`, oldest first."""
    names = (entry.name for entry in folder.glob("v*") if entry.is_dir())
    return sorted((name for name in names if VERSION_NAME.fullmatch(name)), key=_number)


def canonical_name(reference: str | int) -> str | None:
    """Return the canonical name (``v0003``) of ``3``, ``"3"``, ``"v3"`` or ``"v0003"``; else None."""
    match = re.fullmatch(r"v?(\d{1,9})", str(reference))
    return None if match is None else f"v{int(match[1]):04d}"


def _number(name: str) -> int:
    return int(name.removeprefix("v"))
