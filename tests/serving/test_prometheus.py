"""The numbers for Prometheus: they parse, they are those of the files, and what is not known is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import durable
from config import Paths
from intake.report import Limits, ReportCard
from monitoring.throughput_monitor import WINDOW_STEPS
from monitoring.training_status import QueueStatus, TrainingStatus
from tests.serving.served import Served
from tests.training.ledger.run_folders import Folder
from training.job_queue import JobQueue
from training.jobs import Job

Samples = dict[tuple[str, tuple[str, ...]], float]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def scrape(paths: Paths) -> Samples:
    """Return each value by its name and the values of its labels."""
    with Served(paths) as client:
        text = client.get("/metrics").body.decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def write_status(paths: Paths, **fields: object) -> None:
    status = TrainingStatus().model_copy(update=fields)
    durable.write_json(paths.status_file, status.model_dump(mode="python"))


def report(folder: Folder, job: Job, **counts: int) -> None:
    card = ReportCard(
        name=job.name,
        sha256=job.sha256,
        size_bytes=1,
        container="jsonl",
        usable=True,
        reason=None,
        limits=Limits(max_length=1, excess_length="refuse", max_bad_fraction=0.1),
    )
    counted = card.model_copy(update=counts)
    durable.write_json(folder.paths.run(job.job_id).report, counted.model_dump(mode="json"))


def test_the_numbers_are_those_of_the_status(folder: Folder) -> None:
    write_status(
        folder.paths,
        state="training",
        batch_step=7,
        loss=1.5,
        tokens_per_sec=250.0,
        accuracy_percent=40.0,
        queue=QueueStatus(high=1, normal=2),
        alert_summary={"critical": 1, "warning": 2, "info": 0},
        memory={"used_gb": 2.0, "daemon_process": {"memory_mb": 3.0}},
        disk={"free_bytes": 4096},
        gpu={"memory_used_mb": 5.0, "gpu_utilization": 50, "temperature": None},
    )
    found = scrape(folder.paths)
    assert found["trainbox_up", ()] == 1
    assert found["trainbox_state", ("training",)] == 1
    assert sum(value for (name, _), value in found.items() if name == "trainbox_state") == 1
    assert found["trainbox_step", ()] == 7
    assert found["trainbox_loss", ()] == 1.5
    assert found["trainbox_tokens_per_second", ()] == 250
    assert found["trainbox_accuracy_ratio", ()] == 0.4
    assert [found["trainbox_queue_jobs", (one,)] for one in ("high", "normal", "low")] == [1, 2, 0]
    assert [found["trainbox_alerts", (one,)] for one in ("critical", "warning", "info")] == [1, 2, 0]
    assert found["trainbox_memory_used_bytes", ()] == 2 * 2**30
    assert found["trainbox_daemon_resident_bytes", ()] == 3 * 2**20
    assert found["trainbox_disk_free_bytes", ()] == 4096
    assert found["trainbox_gpu_memory_used_bytes", ()] == 5 * 2**20
    assert found["trainbox_gpu_utilization_ratio", ()] == 0.5


def test_help_says_over_what_each_number_is_taken(folder: Folder) -> None:
    write_status(folder.paths, tokens_per_sec=250.0, accuracy_percent=40.0, eta_seconds=9.0)
    with Served(folder.paths) as client:
        families = text_string_to_metric_families(client.get("/metrics").body.decode())
        told = {family.name: family.documentation for family in families}
    assert all(told.values())
    assert f"the last {WINDOW_STEPS} steps" in told["trainbox_tokens_per_second"]
    assert "of this run" in told["trainbox_accuracy_ratio"]
    assert "no outcome" in told["trainbox_queue_jobs"]


def test_the_queue_counts_a_job_until_it_has_an_outcome(folder: Folder) -> None:
    folder.job(1, state="running", started=True)
    folder.job(2, priority="high")
    folder.job(3, state="finished", outcome="completed")
    counts = JobQueue(folder.store).counts()
    assert (counts["high"], counts["normal"], counts["low"]) == (1, 1, 0)


def test_what_is_not_known_is_absent_and_not_zero(folder: Folder) -> None:
    before = {name for name, _ in scrape(folder.paths)}
    assert before == {"trainbox_records", "trainbox_versions"}
    write_status(folder.paths)
    names = {name for name, _ in scrape(folder.paths)}
    for missing in ("loss", "step", "tokens_per_second", "gpu_temperature_celsius", "disk_free_bytes"):
        assert f"trainbox_{missing}" not in names


def test_records_and_jobs_are_counted_over_all_runs_that_are_kept(folder: Folder) -> None:
    done = folder.job(1, state="finished", outcome="completed")
    refused = folder.job(2, state="finished", outcome="refused")
    waiting = folder.job(3)
    report(folder, done, accepted=10, refused=1, held_out=2)
    report(folder, refused, refused=5)
    report(folder, waiting, accepted=3)
    for _ in range(2):
        found = scrape(folder.paths)
        assert found["trainbox_records", ("accepted",)] == 13
        assert found["trainbox_records", ("refused",)] == 6
        assert found["trainbox_records", ("held_out",)] == 2
        assert [found["trainbox_jobs", (one,)] for one in ("completed", "refused", "queued")] == [1, 1, 1]


def test_a_run_folder_that_is_gone_counts_no_more(folder: Folder) -> None:
    done = folder.job(1, state="finished", outcome="completed")
    report(folder, done, accepted=10)
    with Served(folder.paths) as client:
        assert 'trainbox_records{verdict="accepted"} 10.0' in client.get("/metrics").body.decode()
        durable.remove_tree(folder.paths.run(done.job_id).folder)
        assert 'trainbox_records{verdict="accepted"} 0.0' in client.get("/metrics").body.decode()


def test_a_daemon_that_is_gone_is_not_up(folder: Folder) -> None:
    write_status(folder.paths, pid_start_ticks=1)
    assert scrape(folder.paths)["trainbox_up", ()] == 0
