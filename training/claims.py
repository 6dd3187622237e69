"""A settled file becomes a job: a private copy in a run folder of its own, then the original moves away.

The rename of the staging folder to ``models/runs/<job_id>`` is what makes the job; before it nothing has
happened, after it the rest is finished at the next start.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import durable
from config import Config, Paths, RunPaths, dump_config
from errors import IntegrityError
from intake.inbox import (
    COMPANIONS,
    Candidate,
    Signature,
    copy_privately,
    linked_files,
    path_from_relative,
    place_name,
)
from monitoring.events import now
from training.disk_space import Need, demand
from training.jobs import Job, JobStore, Source, make_job_id

logger = logging.getLogger(__name__)

FILES_OF_A_CLAIM = 8
"""Files and folders that a claim makes."""


@dataclass(frozen=True, slots=True)
class SetAside:
    """A file that did not become a job, with the place where it lies now beside its report."""

    verdict: Literal["duplicate", "too_large"]
    path: Path
    reason: str


class Claims:
    """Makes jobs of candidates; one at a time, by one process."""

    def __init__(
        self, paths: Paths, store: JobStore, config: Config, on_progress: Callable[[], None] = lambda: None
    ) -> None:
        """`on_progress` is called again and again while a file is copied."""
        self._paths = paths
        self._store = store
        self._config = config
        self._on_progress = on_progress
        self._next_number = store.next_number()
        self._jobs_by_hash: defaultdict[str, list[str]] = defaultdict(list)
        self._places: set[str] = set()
        self._unfinished: dict[str, Job] = {}
        """Jobs whose original may still lie in the inbox, by its path there."""
        for job in store.all():
            self._remember(job)

    def recover(self) -> None:
        """Throw away what was not finished, and finish the moves that a crash left undone."""
        for folder in sorted(self._paths.runs.glob(f".*{durable.PARTIAL_SUFFIX}")):
            logger.info("Removed the unfinished folder %s", folder.name)
            durable.remove_tree(folder)
        for torn in sorted(self._paths.runs.glob(f"*/data/.*{durable.PARTIAL_SUFFIX}")):
            logger.info("Removed the unfinished file %s of %s", torn.name, torn.parent.parent.name)
            torn.unlink()
        for job in self._store.queue():
            self.withdraw(job)
        for path in linked_files(self._paths.inbox):
            self._finish_setting_aside(path)

    def claim(self, candidate: Candidate) -> Job | SetAside | None:
        """Make a job of `candidate`, or set it aside; None when it changed meanwhile: scan again.

        Also None for the original of an earlier job that could not be moved away then: that is done now.
        Raises EnvironmentNotReady when its copy would not leave ``disk.min_free_bytes`` free.
        """
        unfinished = self._unfinished.pop(candidate.relative_path, None)
        if unfinished is not None and _is_still(candidate.path, unfinished):
            self._finish(unfinished)
            return None
        if candidate.signature.size_bytes > self._config.inbox.max_file_bytes:
            return self._set_aside_too_large(candidate)
        copy = Need(candidate.signature.size_bytes, FILES_OF_A_CLAIM)
        demand(self._paths.runs, copy, self._config.disk.min_free_bytes)
        staging = RunPaths(self._paths.runs / f".{self._next_number:06d}{durable.PARTIAL_SUFFIX}")
        try:
            return self._claim_through(staging, candidate)
        finally:
            if staging.folder.exists():
                durable.remove_tree(staging.folder)

    def _claim_through(self, staging: RunPaths, candidate: Candidate) -> Job | SetAside | None:
        durable.make_folder(staging.data)
        sha256 = copy_privately(candidate, staging.input(candidate.suffix), self._on_progress)
        if sha256 is None:
            return None
        twin = None if self._config.inbox.allow_duplicates else self._twin(sha256)
        if twin is not None:
            return self._set_aside_duplicate(candidate, twin)
        job = self._make_job(candidate, sha256)
        durable.write_bytes(staging.config_file, dump_config(self._config).encode())
        durable.write_json(staging.job_file, job.model_dump(mode="json"))
        durable.fsync_folder(staging.data)
        durable.fsync_folder(staging.folder)
        durable.rename_new(staging.folder, self._store.run(job).folder)
        self._next_number += 1
        self._remember(job)
        self._finish(job)
        logger.info("Claimed inbox/%s as job %s (%d bytes)", candidate.name, job.job_id, job.size_bytes)
        return job

    def _make_job(self, candidate: Candidate, sha256: str) -> Job:
        number, signature = self._next_number, candidate.signature
        return Job(
            job_id=make_job_id(number, sha256),
            number=number,
            sha256=sha256,
            size_bytes=signature.size_bytes,
            name=candidate.name,
            place=place_name(candidate.name, candidate.suffix, number, self._is_taken),
            suffix=candidate.suffix,
            tags=candidate.tags,
            priority=candidate.priority,
            source=Source(
                relative_path=candidate.relative_path,
                device=signature.device,
                inode=signature.inode,
                mtime_ns=signature.mtime_ns,
            ),
            claimed_at=now(),
        )

    def _twin(self, sha256: str) -> Job | None:
        """Return the earliest job of the same bytes that was trained or is going to be."""
        earlier = [self._store.get(job_id) for job_id in self._jobs_by_hash[sha256]]
        return next((job for job in earlier if job and job.outcome in (None, "completed")), None)

    def _remember(self, job: Job) -> None:
        self._jobs_by_hash[job.sha256].append(job.job_id)
        self._places.add(job.place)

    def _finish(self, job: Job) -> None:
        """Move the original away once the job is on the disk; the job is there whether that works or not."""
        try:
            durable.fsync_folder(self._paths.runs)
            self.withdraw(job)
        except OSError as error:
            logger.warning("Could not move inbox/%s away, will try again: %s", job.name, error)
            self._unfinished[job.source.relative_path] = job

    def withdraw(self, job: Job) -> None:
        """Move the original to processing/ unless it is not the file that was copied; safe to repeat."""
        original = path_from_relative(self._paths.inbox, job.source.relative_path)
        place = self._paths.processing / job.place
        if not _is_still(original, job):
            return
        durable.make_folder(self._paths.processing)
        durable.move_file(original, place)
        if not _is_still(place, job):
            # It was changed between the look and the move: what it is now has been copied by nobody.
            logger.info("inbox/%s changed while it was taken and is left for another look", job.name)
            with contextlib.suppress(FileExistsError):
                durable.move_file(place, original)

    def _set_aside_duplicate(self, candidate: Candidate, twin: Job) -> SetAside:
        reason = (
            f"the same bytes as job {twin.job_id} ({twin.name}), so it is not trained again; "
            "set inbox.allow_duplicates to true and drop it again to train it once more"
        )
        facts = {"sha256": twin.sha256, "duplicate_of": twin.job_id}
        return SetAside("duplicate", self._set_aside(candidate, self._paths.done, reason, facts), reason)

    def _set_aside_too_large(self, candidate: Candidate) -> SetAside:
        reason = (
            f"found {candidate.signature.size_bytes} bytes, expected at most "
            f"{self._config.inbox.max_file_bytes} (inbox.max_file_bytes); split the file or raise the limit"
        )
        return SetAside("too_large", self._set_aside(candidate, self._paths.rejected, reason, {}), reason)

    def _set_aside(self, candidate: Candidate, folder: Path, reason: str, facts: Mapping[str, Any]) -> Path:
        """Write the report, then move the file beside it; a repeat after a crash finds its own report."""
        identity = _identity(candidate.signature)

        def is_taken(place: str) -> bool:
            is_begun = not os.path.lexists(folder / place) and _report_identity(folder / place) == identity
            return self._is_taken(place) and not is_begun

        place = place_name(candidate.name, candidate.suffix, self._next_number, is_taken)
        durable.make_folder(folder)
        report = {"schema_version": 1, "name": candidate.name, "usable": False, "reason": reason}
        report |= {**facts, "identity": identity}
        durable.write_json(folder / f"{place}.report.json", report)
        durable.write_bytes(folder / f"{place}.report.txt", f"{candidate.name}: {reason}\n".encode())
        durable.move_file(candidate.path, folder / place)
        logger.warning("Moved inbox/%s to %s/%s: %s", candidate.name, folder.name, place, reason)
        return folder / place

    def _finish_setting_aside(self, path: Path) -> None:
        """Take a file's name in the inbox away when a power cut left it beside its report as well."""
        signature = Signature.of(path.lstat())
        for folder in (self._paths.done, self._paths.rejected):
            for place in folder.iterdir():
                is_it = place.lstat().st_ino == signature.inode
                if is_it and _report_identity(place) == _identity(signature):
                    durable.move_file(path, place)
                    return

    def _is_taken(self, place: str) -> bool:
        """Tell whether a name, or one of the names beside it, is used in any of the five folders."""
        names = [place, *(place + companion for companion in COMPANIONS)]
        return place in self._places or any(
            os.path.lexists(folder / name)
            for folder in (
                *(self._paths.processing, self._paths.done, self._paths.rejected),
                *(self._paths.failed, self._paths.skipped),
            )
            for name in names
        )


def _is_still(path: Path, job: Job) -> bool:
    """Tell whether the file at `path` is the one that was copied for `job`, unchanged since.

    The device's number says nothing: it may be another one after a reboot, and on btrfs after each mount.
    """
    try:
        found = Signature.of(path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False
    source = job.source
    known = (source.inode, source.mtime_ns, job.size_bytes)
    return (found.inode, found.mtime_ns, found.size_bytes) == known


def _identity(signature: Signature) -> list[int]:
    """Return what tells a file from others and outlives a move and a reboot."""
    return [signature.inode, signature.mtime_ns, signature.size_bytes]


def _report_identity(place: Path) -> list[int] | None:
    """Return which file the report beside `place` was written for when that file was set aside."""
    report = place.with_name(f"{place.name}.report.json")
    if not report.is_file():
        return None
    try:
        document = durable.read_json(report)
    except IntegrityError:
        return None
    return document.get("identity") if isinstance(document, dict) else None
