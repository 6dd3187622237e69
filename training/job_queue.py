"""The unfinished jobs in memory, and what an outcome makes of a job.

The run folders are the truth; this is their image in the one process that changes them, so that a daemon
with thousands of finished jobs does not read them all several times a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from monitoring.events import OutcomeEvent, now
from training.jobs import PRIORITIES, Job, JobStore, Priority
from training.runner import CRASH_KINDS


class JobQueue:
    """What waits to run or to be filed away; every change is on disk before it is here."""

    def __init__(self, store: JobStore, on_change: Callable[[Job], None] = lambda job: None) -> None:
        """`on_change` is called with each job after its change is on disk."""
        self._store = store
        self._on_change = on_change
        self._jobs = {job.job_id: job for job in store.queue()}

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def ordered(self) -> list[Job]:
        """Return the ended jobs not filed away yet, then begun ones, then the rest by priority and number."""

        def order(job: Job) -> tuple[bool, bool, int, int]:
            return (job.outcome is None, not job.started, PRIORITIES.index(job.priority), job.number)

        return sorted(self._jobs.values(), key=order)

    def waiting(self) -> list[Job]:
        """Return the jobs that have no outcome yet, in the order in which they run."""
        return [job for job in self.ordered() if job.outcome is None]

    def interrupted(self) -> Job | None:
        """Return the job that was begun and goes on next, or None."""
        return next((job for job in self.waiting() if job.started), None)

    def counts(self) -> dict[Priority, int]:
        """Return how many jobs wait, by priority."""
        waiting = self.waiting()
        return {priority: sum(job.priority == priority for job in waiting) for priority in PRIORITIES}

    def add(self, job: Job) -> None:
        """Take in a job that was claimed just now."""
        self._jobs[job.job_id] = job
        self._on_change(job)

    def latest(self, job: Job) -> Job:
        """Return what was last known of `job`."""
        return self._jobs.get(job.job_id, job)

    def save(self, job: Job) -> Job:
        """Write a changed job durably."""
        self._jobs[job.job_id] = self._store.save(job)
        self._on_change(job)
        return job

    def put_back(self, job: Job) -> Job:
        """Put a job back that cannot go on now; it loses nothing, not even when the disk is full."""
        self._jobs[job.job_id] = job if job.outcome is not None else released(job)
        with contextlib.suppress(OSError):  # the disk may be what is waited for; memory has it
            self._store.save(self._jobs[job.job_id])
        self._on_change(job)
        return self._jobs[job.job_id]

    def finish(self, job: Job) -> None:
        """Strike out a job whose file has been put away."""
        self._store.save(changed(job, state="finished"))
        self._jobs.pop(job.job_id, None)
        self._on_change(job)


def begun(job: Job) -> Job:
    """Return `job` as it is when a worker is about to be started for it."""
    return changed(job, state="running", started=True, attempts=job.attempts + 1)


def released(job: Job, step: int | None = None) -> Job:
    """Return `job` queued again by a person's wish or for want of something: no attempt is counted."""
    attempts = job.attempts - 1 if job.state == "running" else job.attempts
    return changed(job, state="queued", attempts=max(attempts, 0), step=_further(job, step))


def advanced(job: Job, step: int) -> Job:
    """Return `job` with a checkpoint further on than ever: what went wrong before it counts no more."""
    return changed(job, step=step, attempts=1)


def ended(job: Job, outcome: OutcomeEvent) -> Job:
    """Return `job` with its outcome; from here on it is only put away."""
    assert outcome.outcome in ("completed", "refused", "skipped", "failed")
    return changed(
        job,
        outcome=outcome.outcome,
        failure_kind=outcome.kind,
        message=outcome.message,
        version=outcome.version,
        step=_further(job, outcome.step),
        finished_at=now(),
    )


def concluded(job: Job, outcome: OutcomeEvent, version: str | None, max_restarts: int) -> Job:
    """Return what the end of a worker makes of its running job.

    `version` is the version whose manifest names the job: then it is completed, whatever the worker said,
    and without one it never is. A crash leaves it queued while it has attempts left.
    """
    if version is not None:
        return ended(job, OutcomeEvent(outcome="completed", version=version, step=outcome.step))
    if outcome.outcome == "completed":
        message = "the worker said completed, but no version names this job"
        return ended(job, OutcomeEvent(outcome="failed", kind="unpublished", message=message))
    if outcome.outcome in ("paused", "stopped", "waiting"):
        return released(job, outcome.step)
    if outcome.kind in CRASH_KINDS and job.attempts <= max_restarts:
        failure = {"failure_kind": outcome.kind, "message": outcome.message}
        return changed(job, state="queued", step=_further(job, outcome.step), **failure)
    return ended(job, outcome)


def given_up(job: Job) -> Job:
    """Return `job` failed because it was started too often without getting further."""
    message = f"given up after {job.attempts} attempts without a new checkpoint"
    message += f"; the last one: {job.message}" if job.message else ""
    return ended(job, OutcomeEvent(outcome="failed", kind=job.failure_kind or "crash", message=message))


def changed(job: Job, **fields: Any) -> Job:
    return job.model_copy(update=fields)


def _further(job: Job, step: int | None) -> int | None:
    return job.step if step is None else step
