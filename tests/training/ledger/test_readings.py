"""What a run folder says becomes rows; the same files say the same, at once or while they grow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

import durable
from monitoring.events import (
    BestCheckpoint,
    CheckpointEvent,
    EvaluatedEvent,
    Event,
    HeartbeatEvent,
    OutcomeEvent,
    PublishedEvent,
)
from tests.training.ledger.run_folders import MORNING, Folder, plan, step, steps
from training.jobs import Job
from training.ledger.metrics import loss_trend
from training.ledger.readings import RunReader
from training.ledger.sources import fingerprint
from training.ledger.upkeep import read_run

LATER = MORNING + timedelta(hours=1)
BEST = BestCheckpoint(step=2, path="x", eval_loss=1.25, score=0.8, epochs_without_improvement=1)


def evaluated(number: int, loss: float) -> EvaluatedEvent:
    return EvaluatedEvent(at=MORNING, step=number, eval_loss=loss, records=4, tokens=40)


def log(folder: Folder, job: Job, *lines: Mapping[str, object]) -> None:
    """Write the log of the trainer itself."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    folder.paths.run(job.job_id).trainer_log.write_text(text, encoding="utf-8")


def logged(number: int) -> dict[str, object]:
    return {
        "current_steps": number,
        "loss": 1 / number,
        "lr": 0.1,
        "epoch": 0.5,
        "total_tokens": 100 * number,
    }


@pytest.fixture
def bench(sqlite_folder: Folder) -> Folder:
    return sqlite_folder


def test_a_completed_job_has_its_numbers(bench: Folder) -> None:
    published = PublishedEvent(
        at=MORNING, version="v0001", decision="hold", reason="worse", before_loss=1.0, after_loss=1.5
    )
    job = bench.job(
        *(1, HeartbeatEvent(at=MORNING), plan(4), step(1, 2.0), step(2, 1.5), evaluated(2, 1.25)),
        *(CheckpointEvent(at=MORNING, step=2, path="x", eval_loss=1.25, best=BEST), step(3, 1.2)),
        *(step(4, 0.5), evaluated(4, 1.75), published, OutcomeEvent(at=LATER, outcome="completed")),
        state="finished",
        outcome="completed",
        version="v0001",
        finished_at=LATER,
        attempts=1,
    )
    durable.write_json(
        bench.paths.run(job.job_id).report, {"records_total": 10, "accepted": 8, "held_out": 2}
    )
    row, metrics = read_run(bench.paths, job.job_id)
    assert row is not None
    assert {name: row[name] for name in ("status", "outcome", "version", "dataset_path", "model_name")} == {
        **{"status": "completed", "outcome": "completed", "version": "v0001"},
        **{"dataset_path": "inbox/done/1.jsonl", "model_name": "embedded"},
    }
    assert (row["started_at"], row["completed_at"], row["updated_at"]) == (MORNING, LATER, LATER)
    assert (row["progress"], row["current_step"], row["total_steps"]) == (100, 4, 4)
    assert (row["current_epoch"], row["total_epochs"]) == (2, 2)
    assert (row["loss"], row["final_loss"], row["train_perplexity"]) == (0.5, 0.5, math.exp(0.5))
    assert (row["eval_loss"], row["final_eval_loss"], row["perplexity"]) == (1.75, 1.5, math.exp(1.75))
    assert (row["best_eval_loss"], row["best_checkpoint_step"], row["best_checkpoint_epoch"]) == (1.25, 2, 1)
    assert row["best_checkpoint_score"] == 0.8
    assert row["best_checkpoint_path"] == f"models/runs/{job.job_id}/checkpoint-2"
    assert (row["epochs_without_improvement"], row["loss_trend"]) == (1, "improving")
    assert (row["total_tokens_processed"], row["tokens_per_second"], row["samples_per_second"]) == (
        *(400, 400.0),
        160.0,
    )
    assert (row["total_samples"], row["train_samples"], row["val_samples"]) == (10, 8, 2)
    assert (row["batch_size"], row["gradient_accumulation_steps"]) == (8, 1)
    assert row["metadata"]["decision"] == "hold"
    assert [metrics[number]["train_loss"] for number in sorted(metrics)] == [2.0, 1.5, 1.2, 0.5]
    assert metrics[2]["eval_loss"] == 1.25
    assert "eval_loss" not in metrics[3]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, "queued"),
        ({"state": "running", "started": True}, "running"),
        ({"state": "finished", "outcome": "failed"}, "failed"),
        ({"state": "finished", "outcome": "refused"}, "failed"),
        ({"state": "finished", "outcome": "skipped"}, "cancelled"),
    ],
)
def test_the_status_is_a_word_that_other_tools_know(
    bench: Folder, fields: dict[str, object], status: str
) -> None:
    row, _ = read_run(bench.paths, bench.job(1, **fields).job_id)
    assert row is not None
    assert (row["status"], row["outcome"]) == (status, fields.get("outcome"))


def test_a_paused_job_is_paused_until_it_goes_on(bench: Folder) -> None:
    job = bench.job(1, plan(), step(1), OutcomeEvent(outcome="paused", step=1), started=True)
    row, _ = read_run(bench.paths, job.job_id)
    assert row is not None and row["status"] == "paused"
    bench.store.save(job.model_copy(update={"state": "running"}))
    row, _ = read_run(bench.paths, job.job_id)
    assert row is not None and row["status"] == "running"


def test_what_is_not_known_is_null(bench: Folder) -> None:
    row, metrics = read_run(bench.paths, bench.job(1).job_id)
    assert row is not None
    unknown = ("loss", "eval_loss", "progress", "total_steps", "started_at", "perplexity", "loss_trend")
    assert [row[name] for name in unknown] == [None] * len(unknown)
    assert metrics == {}


def test_steps_done_again_after_a_crash_replace_the_first(bench: Folder) -> None:
    job = bench.job(1, plan(), *steps(range(1, 8)), evaluated(5, 1.0), evaluated(7, 0.5))
    best = BestCheckpoint(step=5, path="x", eval_loss=1.0)
    announced = CheckpointEvent(at=MORNING, step=5, path="x", eval_loss=1.0, best=best)
    bench.say(job, plan(start_step=5), announced, step(6, 9.0))
    row, metrics = read_run(bench.paths, job.job_id)
    assert row is not None
    assert sorted(metrics) == [1, 2, 3, 4, 5, 6]
    assert (metrics[6]["train_loss"], row["loss"], row["current_step"]) == (9.0, 9.0, 6)
    assert (row["best_eval_loss"], row["best_checkpoint_step"], row["total_tokens_processed"]) == (
        1.0,
        5,
        600,
    )
    assert row["resume_from_checkpoint"] == f"models/runs/{job.job_id}/checkpoint-5"


def test_steps_of_which_no_event_was_kept_come_from_the_trainers_log(bench: Folder) -> None:
    """A daemon that is killed has heard less than its worker did."""
    job = bench.job(1, plan(), step(1), step(2))
    log(bench, job, logged(1), logged(2), logged(3), {**logged(4), "loss": 0.25}, logged(5))
    bench.say(job, plan(start_step=4), step(5))
    row, metrics = read_run(bench.paths, job.job_id)
    assert row is not None
    assert sorted(metrics) == [1, 2, 3, 4, 5]
    assert (metrics[4]["train_loss"], metrics[4]["tokens"], metrics[4]["grad_norm"]) == (0.25, 100, None)
    assert row["total_tokens_processed"] == 500


def test_the_last_steps_of_an_ended_job_come_from_the_trainers_log_too(bench: Folder) -> None:
    ended = {"state": "finished", "outcome": "failed"}
    job = bench.job(1, plan(), step(1), **ended)
    evaluation = {"current_steps": 2, "eval_loss": 0.75, "epoch": 1.0}
    log(bench, job, logged(1), logged(2), evaluation)
    with open(bench.paths.run(job.job_id).trainer_log, "ab") as file:
        file.write(b'{"current_steps": 3, "lo')
    row, metrics = read_run(bench.paths, job.job_id)
    assert row is not None
    assert (sorted(metrics), row["eval_loss"], row["loss"]) == ([1, 2], 0.75, 0.5)


def test_a_run_read_while_it_grows_says_what_it_says_when_read_at_once(bench: Folder) -> None:
    job = bench.job(1)
    events: list[Event] = [
        plan(),
        *steps(range(1, 6)),
        evaluated(5, 1.0),
        plan(start_step=3),
        *steps(range(4, 11)),
    ]
    reader = RunReader(bench.paths, job.job_id)
    for event in events:
        bench.say(job, event)
        assert sum(len(batch) for batch in reader.read()) <= 1
    assert reader.row() == (read_run(bench.paths, job.job_id))[0]


def test_half_a_line_waits_and_a_damaged_one_is_passed_over(bench: Folder) -> None:
    job = bench.job(1, plan(), step(1))
    events = bench.paths.run(job.job_id).events
    with open(events, "ab") as file:
        file.write(b'{"event": "step", "st')
    reader = RunReader(bench.paths, job.job_id)
    assert [list(batch.steps) for batch in reader.read()] == [[1]]
    with open(events, "ab") as file:
        file.write(b"\0\0\n")
    bench.say(job, step(2))
    assert [list(batch.steps) for batch in reader.read()] == [[2]]


@pytest.mark.parametrize("name", ["job.json", "config.yaml", "data/report.json"])
def test_a_damaged_document_costs_only_what_it_said(bench: Folder, name: str) -> None:
    job = bench.job(1, plan(), step(1))
    (bench.paths.run(job.job_id).folder / name).write_bytes(b"\xff{")
    row, _ = read_run(bench.paths, job.job_id)
    assert (row is None) == (name == "job.json")
    if row is not None:
        assert row["loss"] == 2.0


def test_the_environment_does_not_change_what_a_run_says(
    bench: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = bench.job(1)
    config_file = bench.paths.run(job.job_id).config_file
    config_file.write_text("model: {base: tiny}\nledger: {url: secret}\n", encoding="utf-8")
    monkeypatch.setenv("TRAINBOX_MODEL__BASE", "another")
    row, _ = read_run(bench.paths, job.job_id)
    assert row is not None
    assert (row["model_name"], row["config"]) == ("tiny", {"model": {"base": "tiny"}})


def test_a_loss_beyond_all_measure_has_no_perplexity(bench: Folder) -> None:
    row, metrics = read_run(bench.paths, bench.job(1, plan(), step(1, 1e9)).job_id)
    assert row is not None
    assert (row["train_perplexity"], metrics[1]["train_perplexity"]) == (None, None)


def test_a_fingerprint_changes_with_each_file(bench: Folder) -> None:
    job = bench.job(1, plan())
    run = bench.paths.run(job.job_id)
    seen = {fingerprint(bench.paths, job.job_id)}
    for path in (run.job_file, run.config_file, run.events, run.report, run.trainer_log):
        with open(path, "ab") as file:
            file.write(b"\n")
        seen.add(fingerprint(bench.paths, job.job_id))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("losses", "trend"),
    [
        ([2.0, 1.0], "insufficient_data"),
        ([2.0, 1.5, 1.0], "improving"),
        ([1.0, 1.5, 2.0], "degrading"),
        ([1.0, 1.005, 1.0, 1.005], "stable"),
    ],
)
def test_the_trend_compares_the_halves_of_the_last_losses(losses: list[float], trend: str) -> None:
    assert loss_trend(losses) == trend


def test_a_zero_byte_in_a_message_is_replaced(bench: Folder, tmp_path: Path) -> None:
    job = bench.job(1, state="finished", outcome="failed", message="a\0b")
    row, _ = read_run(bench.paths, job.job_id)
    assert row is not None and row["error_message"] == "a\N{REPLACEMENT CHARACTER}b"
