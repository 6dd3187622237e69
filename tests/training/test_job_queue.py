"""The order of the queue, and what each outcome makes of a job."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Literal

import pytest

import durable
from config import Paths
from monitoring.events import Outcome, OutcomeEvent, now
from training.job_queue import JobQueue, advanced, begun, concluded, ended, given_up, released
from training.jobs import Job, JobStore, Source


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    paths = Paths(tmp_path / "base")
    paths.create()
    return JobStore(paths)


def make_job(number: int, priority: Literal["high", "normal", "low"] = "normal", **fields: object) -> Job:
    return Job(
        job_id=f"{number:06d}-0a0a0a0a",
        number=number,
        sha256="0a" * 32,
        size_bytes=3,
        name=f"{number}.jsonl",
        place=f"{number}.jsonl",
        suffix=".jsonl",
        priority=priority,
        source=Source(relative_path="a.jsonl", device=1, inode=1, mtime_ns=1),
        claimed_at=now(),
    ).model_copy(update=fields)


def stored(store: JobStore, *jobs: Job) -> JobQueue:
    for job in jobs:
        durable.make_folder(store.run(job).folder)
        store.save(job)
    return JobQueue(store)


def test_ended_jobs_come_first_then_begun_ones_then_by_priority_and_number(store: JobStore) -> None:
    queue = stored(
        store,
        make_job(1, "low"),
        make_job(2),
        make_job(3, "high"),
        make_job(4, "low", started=True),
        make_job(5, "low", outcome="refused", state="running"),
        make_job(6),
        make_job(7, state="finished", outcome="completed"),
    )
    assert [job.number for job in queue.ordered()] == [5, 4, 3, 2, 6, 1]
    assert [job.number for job in queue.waiting()] == [4, 3, 2, 6, 1]
    assert queue.counts() == {"high": 1, "normal": 2, "low": 2}
    interrupted = queue.interrupted()
    assert interrupted is not None and interrupted.number == 4


def test_a_finished_job_leaves_the_queue(store: JobStore) -> None:
    queue = stored(store, make_job(1, outcome="completed"))
    assert queue
    queue.finish(queue.ordered()[0])
    assert not queue
    assert [job.state for job in store.all()] == ["finished"]
    assert not JobQueue(store)


def test_every_change_is_on_disk(store: JobStore) -> None:
    queue = stored(store, make_job(1))
    saved = queue.save(begun(queue.ordered()[0]))
    assert store.all() == [saved] == queue.ordered()
    assert (saved.state, saved.started, saved.attempts) == ("running", True, 1)


def test_a_job_is_put_back_even_when_the_disk_is_full(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = stored(store, make_job(1))
    running = queue.save(begun(queue.ordered()[0]))

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JobStore, "save", no_space)
    assert queue.put_back(running).state == "queued"
    assert [(job.state, job.attempts) for job in queue.ordered()] == [("queued", 0)]


RUNNING = make_job(1, state="running", started=True, attempts=2, step=10)


def conclude(outcome: Outcome, version: str | None = None, kind: str | None = None, step: int = 12) -> Job:
    event = OutcomeEvent(outcome=outcome, kind=kind, message="why", step=step)
    return concluded(RUNNING, event, version, max_restarts=3)


def test_a_version_that_names_the_job_completes_it_whatever_the_worker_said() -> None:
    for outcome in ("completed", "failed", "stopped", "waiting"):
        job = conclude(outcome, "v0001")
        assert (job.outcome, job.version) == ("completed", "v0001")


def test_completed_without_a_version_is_a_failure() -> None:
    job = conclude("completed")
    assert (job.outcome, job.failure_kind) == ("failed", "unpublished")


@pytest.mark.parametrize("outcome", ["paused", "stopped", "waiting"])
def test_what_a_person_or_the_environment_wanted_counts_no_attempt(outcome: Outcome) -> None:
    job = conclude(outcome)
    assert (job.state, job.outcome, job.attempts, job.step) == ("queued", None, 1, 12)


@pytest.mark.parametrize("outcome", ["refused", "skipped"])
def test_a_refused_or_skipped_job_has_ended(outcome: Outcome) -> None:
    job = conclude(outcome)
    assert (job.outcome, job.message, job.attempts) == (outcome, "why", 2)


@pytest.mark.parametrize("kind", ["crash", "oom", "killed", "hang"])
def test_a_crash_is_queued_again_until_the_attempts_are_used_up(kind: str) -> None:
    crash = OutcomeEvent(outcome="failed", kind=kind, message="why")
    again = concluded(RUNNING, crash, None, max_restarts=2)
    assert (again.state, again.outcome, again.attempts, again.failure_kind) == ("queued", None, 2, kind)
    failed = concluded(RUNNING, crash, None, max_restarts=1)
    assert (failed.outcome, failed.failure_kind) == ("failed", kind)


def test_a_failure_that_would_happen_again_is_final() -> None:
    assert conclude("failed", kind="nan").outcome == "failed"


def test_a_new_checkpoint_forgives_earlier_attempts() -> None:
    assert (advanced(RUNNING, 20).attempts, advanced(RUNNING, 20).step) == (1, 20)


def test_a_job_started_too_often_says_how_its_last_attempt_ended() -> None:
    job = given_up(RUNNING.model_copy(update={"failure_kind": "oom", "message": "out of memory"}))
    assert (job.outcome, job.failure_kind) == ("failed", "oom")
    assert job.message is not None and "2 attempts" in job.message and "out of memory" in job.message


def test_a_queued_job_is_released_without_losing_an_attempt() -> None:
    queued = make_job(1, attempts=2)
    assert released(queued).attempts == 2


def test_an_ended_job_keeps_its_last_known_step() -> None:
    assert ended(RUNNING, OutcomeEvent(outcome="refused")).step == 10
