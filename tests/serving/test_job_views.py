"""What is shown of a job: where it stands, read from both ends of its events however long they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from monitoring.events import HeartbeatEvent, Outcome, OutcomeEvent
from serving.job_views import KEPT_SUMMARIES, TAIL_BYTES, Course, JobViews, read_course
from serving.version_views import VersionIndex
from tests.training.ledger.run_folders import MORNING, Folder, plan, step, steps


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def views(folder: Folder) -> JobViews:
    return JobViews(folder.paths, VersionIndex(folder.paths))


def test_begin_plan_and_last_step_are_found_in_a_long_file(folder: Folder) -> None:
    job = folder.job(1, HeartbeatEvent(at=MORNING), plan(2000), *steps(range(1, 1500)))
    events = folder.paths.run(job.job_id).events
    assert events.stat().st_size > 2 * TAIL_BYTES
    assert read_course(events) == Course(started_at=MORNING, total_steps=2000, step=1499, outcome=None)


def test_a_job_without_events_has_no_course(tmp_path: Path) -> None:
    assert read_course(tmp_path / "events.jsonl") == Course()


@pytest.mark.parametrize(
    ("outcome", "shown"),
    [("paused", "paused"), ("waiting", "waiting"), ("stopped", "queued"), ("failed", "queued")],
)
def test_a_queued_job_says_how_its_last_worker_ended(folder: Folder, outcome: Outcome, shown: str) -> None:
    job = folder.job(1, plan(), step(1), OutcomeEvent(outcome=outcome), started=True)
    assert views(folder).summary(job).state == shown


def test_a_summary_follows_the_files(folder: Folder) -> None:
    known = views(folder)
    job = folder.job(1, plan(), step(1), state="running")
    assert known.summary(job).step == 1
    folder.say(job, step(2))
    assert known.summary(job).step == 2
    ended = folder.store.save(job.model_copy(update={"state": "finished", "outcome": "completed"}))
    assert known.summary(ended).state == "completed"


def test_the_queue_comes_in_the_order_in_which_it_runs(folder: Folder) -> None:
    folder.job(1, state="finished", outcome="completed")
    folder.job(2, priority="low")
    folder.job(3, priority="high")
    folder.job(4, priority="low", started=True)
    known = views(folder)
    for _ in range(2):
        assert [job.number for job in known.queue()] == [4, 3, 2]


def test_the_summaries_kept_are_bounded(folder: Folder) -> None:
    known, job = views(folder), folder.job(1)
    for number in range(1, KEPT_SUMMARIES + 3):
        known.summary(job.model_copy(update={"job_id": f"{number:06d}-00000000"}))
    assert len(known._summaries) == KEPT_SUMMARIES
