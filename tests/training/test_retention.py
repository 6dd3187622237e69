"""Retention frees what exists twice first, and never what anything needs."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import durable
from config import BackupConfig
from training import checkpoints
from training.backups import Backups
from training.checkpoint_scorer import ScoredCheckpoint, score_parts
from training.checkpoints import CheckpointFacts
from training.jobs import Job, JobStore, Source
from training.retention import Plan, Retention, size_of


def retention_of(shelf: Any, max_bytes: int, root: str = "") -> Retention:
    backups = Backups(shelf.paths, shelf.store, BackupConfig(root=root))
    return Retention(shelf.paths, shelf.store, backups, max_bytes)


def names(plan: Plan) -> list[str]:
    return ["/".join(removal.folder.parts[-2:]) for removal in plan.removals]


def add_run(shelf: Any, number: int, *, state: str = "finished") -> Path:
    """Make a run with checkpoints at steps 5, 10 and 15, of which the first is the best."""
    store = JobStore(shelf.paths)
    job = Job.model_validate(
        {
            "job_id": f"{number:06d}-3f9c2a10",
            "number": number,
            "sha256": "ab" * 32,
            "size_bytes": 1,
            "name": "x.jsonl",
            "place": "x.jsonl",
            "suffix": ".jsonl",
            "source": Source(relative_path="x.jsonl", device=1, inode=1, mtime_ns=1),
            "claimed_at": datetime(2026, 1, 1, tzinfo=UTC),
            "state": state,
        }
    )
    run = store.run(job)
    durable.make_folder(run.folder)
    store.save(job)
    for step in (5, 10, 15):
        durable.make_folder(run.checkpoint(step))
        durable.write_bytes(run.checkpoint(step) / "optimizer.pt", bytes(5000))
        facts = CheckpointFacts(
            step=step,
            epoch=1.0,
            tokens=1,
            precision="float32",
            micro_batch=1,
            eval_loss=step / 10,
            is_candidate=True,
        )
        parts = score_parts({"eval_loss": step / 10, "train_loss": step / 10})
        scored = ScoredCheckpoint(step, step / 10, step / 10, 1, parts)
        checkpoints.seal(run.checkpoint(step), facts, scored)
    return run.folder


def test_nothing_goes_within_the_limit(shelf: Any) -> None:
    add_run(shelf, 1)
    assert retention_of(shelf, 10**9).plan().removals == []


@pytest.mark.config_key("retention.max_bytes")
def test_what_a_version_holds_already_goes_first_the_oldest_before(shelf: Any) -> None:
    for number in (2, 1):
        add_run(shelf, number)
    used = retention_of(shelf, 10**9).plan().used_bytes
    plan = retention_of(shelf, used - 5000 * 4).plan()
    assert names(plan) == [
        *(f"000001-3f9c2a10/checkpoint-{step}" for step in (5, 10, 15)),
        "000002-3f9c2a10/checkpoint-5",
    ]
    assert retention_of(shelf, used - 1).plan().removals == plan.removals[:1]


def test_a_plan_changes_nothing_and_carrying_it_out_frees_what_it_said(
    shelf: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = add_run(shelf, 1)
    used = retention_of(shelf, 10**9).plan().used_bytes
    plan = retention_of(shelf, used - 1).plan()
    assert size_of(run / "checkpoint-5") == plan.freed_bytes > 5000
    done = retention_of(shelf, used - 1).carry_out()
    assert done == plan
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-15"]
    assert f"checkpoint-5, {plan.freed_bytes} bytes" in caplog.text
    assert retention_of(shelf, used).plan().used_bytes == used - plan.freed_bytes


def test_the_best_and_the_last_checkpoint_of_a_run_without_a_version_stay(shelf: Any) -> None:
    run = add_run(shelf, 90)
    retention_of(shelf, 0).carry_out()
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-15", "checkpoint-5"]


@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_unfinished_run_is_not_touched(shelf: Any, state: str) -> None:
    run = add_run(shelf, 90, state=state)
    retention_of(shelf, 0).carry_out()
    assert len(list(run.glob("checkpoint-*"))) == 3


def test_with_no_room_at_all_only_held_versions_nobody_needs_go(
    shelf: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plan = retention_of(shelf, 0).carry_out()
    assert names(plan) == ["versions/v0002", "versions/v0003"]
    assert [version.name for version in shelf.store.list()] == ["v0001", "v0004", "v0005", "v0006"]
    assert list(shelf.paths.backups.iterdir()) == []
    assert plan.excess_bytes > 0
    assert "is still needed" in caplog.text


def test_a_checkpoint_stays_when_the_version_made_of_it_is_damaged(shelf: Any, flip_byte: Any) -> None:
    run = add_run(shelf, 1)
    flip_byte(shelf.paths.versions / "v0001" / "adapter_model.safetensors")
    retention_of(shelf, 0).carry_out()
    assert len(list(run.glob("checkpoint-*"))) == 3


def test_a_copy_of_a_sound_version_goes_before_a_deleted_version(shelf: Any, flip_byte: Any) -> None:
    backups = Backups(shelf.paths, shelf.store, BackupConfig())
    backups.delete("v0002")
    for number in (4, 5):
        backups.back_up(shelf.store.get(number))
    flip_byte(shelf.paths.versions / "v0005" / "adapter_model.safetensors")
    plan = retention_of(shelf, 0).plan()
    assert names(plan)[:2] == ["backups/v0004", "backups/v0002"]
    assert "backups/v0005" not in names(plan)


def test_the_only_copy_of_a_deleted_version_stays_when_it_was_promoted(shelf: Any, tmp_path: Path) -> None:
    root = tmp_path / "second disk"
    root.mkdir()
    shelf.add(parent="v0003")
    for _ in range(3):
        shelf.add(parent="v0006", decision="hold")
    backups = Backups(shelf.paths, shelf.store, BackupConfig(root=str(root)))
    promoted = shelf.store.get("v0007")
    backups.delete("v0007")
    assert "backups/v0007" not in names(retention_of(shelf, 0).plan())
    durable.copy_sealed(shelf.paths.backups / "v0007", root / ".v0007.partial")
    durable.publish_folder(root / ".v0007.partial", root / promoted.name)
    assert "backups/v0007" in names(retention_of(shelf, 0, str(root)).plan())


def test_a_full_model_goes_when_no_version_stands_on_it(shelf: Any) -> None:
    for name in ("v0001", "v0003"):
        durable.make_folder(shelf.paths.consolidated / name)
        durable.write_bytes(shelf.paths.consolidated / name / "model.safetensors", bytes(100))
        durable.seal_folder(shelf.paths.consolidated / name)
    shelf.add(parent="v0003", consolidated="v0003", kind="consolidation")
    assert "consolidated/v0001" in names(retention_of(shelf, 0).plan())
    assert "consolidated/v0003" not in names(retention_of(shelf, 0).plan())
