"""A job: one accepted file on its way to a version, kept as ``models/runs/<job_id>/job.json``.

The run folders are the queue and the truth; nothing about a job is kept anywhere else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from config import Paths, RunPaths
from errors import IntegrityError, UsageError

logger = logging.getLogger(__name__)

JOB_ID = re.compile(r"(\d{6,})-[0-9a-f]{8}")
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
JobState = Literal["queued", "running", "finished"]
JobOutcome = Literal["completed", "refused", "skipped", "failed"]


class Source(BaseModel):
    """The dropped file as it was when it was claimed; tells after a crash whether it still lies there."""

    model_config = ConfigDict(frozen=True)

    relative_path: str
    """Path below the inbox, percent-encoded from its raw bytes."""
    device: int
    """As it was numbered then; the same disk may bear another number after a reboot."""
    inode: int
    mtime_ns: int


class Job(BaseModel):
    """One accepted file; every change is a new document, written by `JobStore.save`."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    job_id: str
    number: int
    sha256: str
    size_bytes: int
    name: str
    """The dropped file's name, escaped for display; never used as a path."""
    place: str
    """The safe, unique name the file bears in processing/, done/, rejected/, failed/ and skipped/."""
    suffix: str
    """The container, for instance ``.jsonl`` or ``.jsonl.gz``."""
    tags: tuple[str, ...] = ()
    priority: Priority = "normal"
    source: Source
    claimed_at: datetime
    state: JobState = "queued"
    outcome: JobOutcome | None = None
    failure_kind: str | None = None
    message: str | None = None
    attempts: int = 0
    """Times a worker was started for it, counted before each start; waiting uses none."""
    started: bool = False
    step: int | None = None
    """Optimizer steps done, as far as the daemon knows; the truth lies in the checkpoints."""
    version: str | None = None
    finished_at: datetime | None = None


def make_job_id(number: int, sha256: str) -> str:
    """Return for instance ``000042-3f9c2a10``: a running number and the start of the content's hash."""
    return f"{number:06d}-{sha256[:8]}"


class JobStore:
    """All jobs of a base folder."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def run(self, job: Job) -> RunPaths:
        return self._paths.run(job.job_id)

    def all(self) -> list[Job]:
        """Return every job by its number; a run folder whose job.json is damaged is logged and left out."""
        return sorted(self._read_all(), key=lambda job: job.number)

    def get(self, job_id: str) -> Job | None:
        """Return one job, or None when no run folder bears that name."""
        if JOB_ID.fullmatch(job_id) is None:
            return None
        job_file = self._paths.run(job_id).job_file
        return self._read(job_file) if job_file.exists() else None

    def find(self, reference: str | None) -> Job:
        """Return the job of a number or a job id, the newest for None; UsageError when there is none."""
        jobs = self.all()
        for job in reversed(jobs):
            if reference is None or reference in (job.job_id, str(job.number)):
                return job
        known = ", ".join(job.job_id for job in jobs[-5:]) or "none yet"
        raise UsageError(f"no job {reference!r}; expected a number or one of: {known}")

    def queue(self) -> list[Job]:
        """Return the unfinished jobs in the order in which they run: begun ones first, then by priority."""
        unfinished = [job for job in self.all() if job.state != "finished"]
        return sorted(
            unfinished, key=lambda job: (not job.started, PRIORITIES.index(job.priority), job.number)
        )

    def save(self, job: Job) -> Job:
        """Write `job` durably and return it."""
        durable.write_json(self.run(job).job_file, job.model_dump(mode="json"))
        return job

    def next_number(self) -> int:
        """Return a number no job has borne, counting runs whose folder has since been removed."""
        names = [
            path.name for folder in (self._paths.runs, self._paths.held_out) for path in folder.iterdir()
        ]
        numbers = [int(match[1]) for name in names if (match := JOB_ID.match(name))]
        return max(numbers, default=0) + 1

    def _read_all(self) -> Iterator[Job]:
        for folder in self._paths.runs.iterdir():
            if JOB_ID.fullmatch(folder.name) is None:
                continue
            try:
                yield self._read(folder / "job.json")
            except (OSError, IntegrityError) as error:
                logger.error("Left out run %s: %s", folder.name, error)

    @staticmethod
    def _read(job_file: Path) -> Job:
        try:
            return Job.model_validate(durable.read_json(job_file))
        except ValidationError as error:
            raise IntegrityError(f"{job_file}: not a job: {error}") from error
