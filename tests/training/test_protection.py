"""Which versions may not go, each with the rule and what to do instead."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import durable
from monitoring.events import OutcomeEvent
from training.job_queue import begun, ended
from training.jobs import Job, JobStore, Source
from training.protection import Protection


def reason(shelf: Any, name: str, *, has_copy: bool = False, now: datetime | None = None) -> str | None:
    moment = now or datetime(2026, 6, 1, tzinfo=UTC)
    protection = Protection(shelf.paths, shelf.store, lambda version: has_copy, lambda: moment)
    return protection.reason_to_keep(shelf.store.get(name))


def queue_job(shelf: Any, number: int, parent: str | None) -> Job:
    """Leave a job in the queue that has begun with `parent`."""
    store = JobStore(shelf.paths)
    job = Job(
        job_id=f"{number:06d}-3f9c2a10",
        number=number,
        sha256="ab" * 32,
        size_bytes=1,
        name="x.jsonl",
        place="x.jsonl",
        suffix=".jsonl",
        source=Source(relative_path="x.jsonl", device=1, inode=1, mtime_ns=1),
        claimed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    durable.make_folder(store.run(job).folder)
    durable.write_json(store.run(job).start, {"parent": parent, "precision": "float32"})
    return store.save(begun(job))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("v0006", "is current; make another one current first: trainbox rollback"),
        ("v0005", "one of the last 3 versions"),
        ("v0004", "one of the last 3 versions"),
        ("v0001", "v0002 continues v0001; delete v0002 first"),
    ],
)
def test_a_version_that_is_needed_stays_and_the_rule_is_named(shelf: Any, name: str, rule: str) -> None:
    assert rule in (reason(shelf, name) or "")


def test_a_held_version_that_nothing_continues_may_go(shelf: Any) -> None:
    assert reason(shelf, "v0002") is None
    assert reason(shelf, "v0003") is None


def test_the_best_promoted_version_stays_when_it_is_no_longer_one_of_the_last(shelf: Any) -> None:
    for _ in range(2):
        shelf.add(parent="v0006")
    assert "lowest held-out loss" in (reason(shelf, "v0004") or "")


def test_a_version_merged_into_the_base_of_another_stays(shelf: Any) -> None:
    shelf.add(parent="v0003", kind="consolidation", consolidated="v0003", decision="hold")
    assert (
        reason(shelf, "v0003") == "v0003 was merged into the full model v0007 stands on; delete v0007 first"
    )


def test_the_version_an_unfinished_run_began_with_stays_until_it_is_filed(shelf: Any) -> None:
    job = queue_job(shelf, 90, "v0002")
    assert "job 000090-3f9c2a10 began with v0002" in (reason(shelf, "v0002") or "")
    finished = ended(job, OutcomeEvent(outcome="skipped")).model_copy(update={"state": "finished"})
    JobStore(shelf.paths).save(finished)
    assert reason(shelf, "v0002") is None


def test_a_version_whose_job_is_not_filed_yet_stays(shelf: Any) -> None:
    queue_job(shelf, 2, None)
    assert "is not filed away yet" in (reason(shelf, "v0002") or "")


def test_a_version_made_within_a_day_stays_unless_a_verified_copy_exists(shelf: Any) -> None:
    made = shelf.store.get("v0002").facts.created_at
    soon, later = made + timedelta(hours=23), made + timedelta(hours=25)
    assert "less than a day old" in (reason(shelf, "v0002", now=soon) or "")
    assert reason(shelf, "v0002", now=soon, has_copy=True) is None
    assert reason(shelf, "v0002", now=later) is None
    assert "less than a day old" in (reason(shelf, "v0002", now=made - timedelta(days=3)) or "")
