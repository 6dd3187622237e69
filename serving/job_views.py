"""What is shown of jobs, from their run folders; what can no longer change is read once."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

import durable
from config import Paths
from errors import IntegrityError
from intake.report import ReportCard
from serving.documents import JobDetail, JobStateShown, JobSummary
from serving.version_views import VersionIndex
from training.jobs import PRIORITIES, Job, JobStore
from training.ledger.sources import fingerprint, integer, read_report, run_ids

logger = logging.getLogger(__name__)

HEAD_BYTES = 1 << 16
"""The plan is among the first events of a run."""
TAIL_BYTES = 1 << 16
"""The last step and the last outcome are among its last ones."""
KEPT_SUMMARIES = 500
SHOWN_REFUSALS = 100
VERDICTS = ("accepted", "refused", "duplicates", "dropped", "held_out")
"""Fields of a report card that count what became of the records."""


@dataclass(frozen=True)
class Course:
    """What the first and the last events of a run say."""

    started_at: datetime | None = None
    total_steps: int | None = None
    step: int | None = None
    outcome: str | None = None
    """How the last worker ended; None while it runs."""


@dataclass(frozen=True)
class Totals:
    """Counts over all jobs whose run folder is kept."""

    states: dict[str, int]
    records: dict[str, int]


class _Finished(NamedTuple):
    outcome: str
    records: tuple[int, ...]
    """In the order of `VERDICTS`."""


class JobViews:
    """All jobs of a base folder as they are shown."""

    def __init__(self, paths: Paths, versions: VersionIndex) -> None:
        self._paths = paths
        self._store = JobStore(paths)
        self._versions = versions
        self._lock = threading.Lock()
        self._finished: dict[str, _Finished] = {}
        self._damaged: set[str] = set()
        self._summaries: OrderedDict[str, tuple[str, JobSummary]] = OrderedDict()

    def newest(self, limit: int) -> list[JobSummary]:
        """Return the newest jobs, newest first."""
        found: list[JobSummary] = []
        for job_id in reversed(run_ids(self._paths)):
            if len(found) == limit:
                break
            job = self.job(job_id)
            if job is not None:
                found.append(self.summary(job))
        return found

    def job(self, job_id: str) -> Job | None:
        """Return one job; None when there is none, or its document is damaged, which is logged once."""
        try:
            return self._store.get(job_id)
        except FileNotFoundError:
            return None
        except (OSError, IntegrityError) as error:
            if job_id not in self._damaged:
                self._damaged.add(job_id)
                logger.error("Left out run %s: %s", job_id, error)
            return None

    def queue(self) -> list[Job]:
        """Return the unfinished jobs in the order in which they run."""
        return sorted(
            self._unfinished(), key=lambda job: (not job.started, PRIORITIES.index(job.priority), job.number)
        )

    def filed(self, limit: int) -> Iterator[Job]:
        """Yield the newest jobs whose file lies in its last folder, newest first."""
        for job_id in reversed(run_ids(self._paths)):
            if limit == 0:
                return
            job = self.job(job_id)
            if job is not None and job.state == "finished" and job.outcome is not None:
                limit -= 1
                yield job

    def totals(self) -> Totals:
        """Count jobs by state and records by verdict."""
        states, records = Counter[str](), Counter[str](dict.fromkeys(VERDICTS, 0))
        for job in self._unfinished():
            states[job.state] += 1
            records.update(self._records(job))
        with self._lock:
            finished = list(self._finished.values())
        for ended in finished:
            states[ended.outcome] += 1
            records.update(dict(zip(VERDICTS, ended.records, strict=True)))
        return Totals(dict(states), dict(records))

    def summary(self, job: Job) -> JobSummary:
        """Return what the list shows of a job."""
        key = f"{fingerprint(self._paths, job.job_id)} {self._versions.has(job.version)}"
        with self._lock:
            known = self._summaries.pop(job.job_id, None)
        if known is None or known[0] != key:
            known = (key, self._summarize(job))
        with self._lock:
            self._summaries[job.job_id] = known
            while len(self._summaries) > KEPT_SUMMARIES:
                self._summaries.popitem(last=False)
        return known[1]

    def detail(self, job: Job) -> JobDetail:
        """Return a job with the report card of its file."""
        report = self.report(job, SHOWN_REFUSALS)
        plan = None if report is None else report.plan
        return JobDetail(**dict(self.summary(job)), report=report, plan=plan)

    def report(self, job: Job, refusals: int) -> ReportCard | None:
        """Return the report card of a job's file with so many refusals; None where there is none yet."""
        try:
            card = ReportCard.model_validate(durable.read_json(self._store.run(job).report))
        except (FileNotFoundError, IntegrityError, ValidationError):
            return None
        return card.model_copy(update={"refusals": card.refusals[:refusals]})

    def _unfinished(self) -> list[Job]:
        """Return the jobs that may still change; of the others only what is counted is kept."""
        unfinished = []
        job_ids = run_ids(self._paths)
        with self._lock:
            for gone in self._finished.keys() - set(job_ids):
                del self._finished[gone]
            for job_id in job_ids:
                job = None if job_id in self._finished else self.job(job_id)
                if job is not None and job.state == "finished":
                    counts = tuple(self._records(job)[verdict] for verdict in VERDICTS)
                    self._finished[job_id] = _Finished(job.outcome or job.state, counts)
                elif job is not None:
                    unfinished.append(job)
        return unfinished

    def _records(self, job: Job) -> dict[str, int]:
        """Return how many records of a job's file met which verdict; none before it was validated."""
        report = read_report(self._store.run(job).report) or {}
        return {verdict: integer(report, verdict) or 0 for verdict in VERDICTS}

    def _summarize(self, job: Job) -> JobSummary:
        course = read_course(self._store.run(job).events)
        return JobSummary(
            job_id=job.job_id,
            number=job.number,
            name=job.name,
            state=_state(job, course),
            priority=job.priority,
            claimed_at=job.claimed_at,
            started_at=course.started_at,
            ended_at=job.finished_at,
            attempts=job.attempts,
            step=max((step for step in (job.step, course.step) if step is not None), default=None),
            total_steps=course.total_steps,
            version=job.version,
            decision=self._versions.decision(job.version),
            message=job.message,
        )


def read_course(events: Path) -> Course:
    """Read the ends of a run's events.jsonl, however long it is."""
    try:
        with open(events, "rb") as file:
            head = file.read(HEAD_BYTES)
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
    except FileNotFoundError:
        return Course()
    first = list(_events(head))
    last = list(_events(tail if size <= TAIL_BYTES else tail.partition(b"\n")[2]))
    plans = [event["total_steps"] for event in first if event.get("event") == "plan"]
    steps = [event["step"] for event in last if event.get("event") in ("step", "checkpoint")]
    ending = last[-1] if last and last[-1].get("event") == "outcome" else {}
    return Course(
        started_at=datetime.fromisoformat(first[0]["at"]) if first and "at" in first[0] else None,
        total_steps=plans[-1] if plans else None,
        step=steps[-1] if steps else None,
        outcome=ending.get("outcome"),
    )


def _events(chunk: bytes) -> Iterator[dict[str, Any]]:
    """Yield the whole events in a piece of a file; a line that is torn or damaged is passed over."""
    for line in chunk.splitlines():
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(event, dict):
            yield event


def _state(job: Job, course: Course) -> JobStateShown:
    if job.outcome is not None:
        return job.outcome
    if job.state == "running":
        return "running"
    if course.outcome == "paused":
        return "paused"
    return "waiting" if course.outcome == "waiting" else "queued"
