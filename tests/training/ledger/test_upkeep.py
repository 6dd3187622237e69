"""The ledger made again from the directories is the one that was kept, row for row."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from errors import EnvironmentNotReady, UsageError
from tests.stub_worker import let_go_file
from tests.training.ledger.postgres import Server
from tests.training.ledger.run_folders import Folder, plan, step, steps
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.ledger.database import Database, list_jobs, list_metrics
from training.ledger.upkeep import ledger_differences, read_run, rebuild_ledger, recorded_jobs


def rows(folder: Folder) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Return all that the ledger holds, bookkeeping included."""
    with Database(folder.paths, folder.config.ledger).transaction() as connection:
        jobs = list_jobs(connection)
        return jobs, [list_metrics(connection, job["id"]) for job in jobs]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder after real lives, with the ledger that was kept through them.

    Completed twice, once by a worker that died before it told, refused, failed, skipped, and resumed after
    worker and daemon were killed.
    """
    folder = Folder(tmp_path_factory.mktemp("lived") / "base")
    folder.drop("a.jsonl", steps=3, publish_then_die=True)
    folder.drop("b.jsonl", refuse="no usable record")
    folder.drop("c.jsonl", fail="nan")
    folder.drop("d.jsonl", steps=40, checkpoint_every=5, crash_at=8, hold_at=(22,))
    folder.drop("e.jsonl", steps=100_000, step_seconds=0.01)
    daemon = folder.start()
    wait_until(lambda: any(folder.paths.runs.glob("000004-*/checkpoint-20")))
    daemon.send_signal(signal.SIGKILL)
    daemon.wait()
    (interrupted,) = [job for job in folder.store.queue() if job.number == 4]
    let_go_file(folder.paths.run(interrupted.job_id), 22).touch()
    daemon = folder.start()
    wait_until(lambda: any(job.number == 5 and job.started for job in folder.store.queue()))
    folder.paths.control("skip").write_bytes(b"")
    wait_until(lambda: not folder.store.queue())
    daemon.send_signal(signal.SIGTERM)
    _, log = daemon.communicate(timeout=PATIENCE_SECONDS)
    assert daemon.returncode == 0, log.decode()
    folder.close()
    return folder.paths.base


@pytest.mark.config_key("ledger.url")
def test_a_rebuilt_ledger_equals_the_one_kept_through_real_lives(
    lived: Path, tmp_path: Path, ledger_url: str
) -> None:
    """A database that is new here is brought up to all of them when the next daemon starts."""
    folder = Folder(Path(shutil.copytree(lived, tmp_path / "base", symlinks=True)), ledger_url)
    folder.drop("f.jsonl", steps=3)
    folder.run()
    folder.close()
    assert ledger_differences(folder.paths, folder.config) == []
    jobs, metrics = rows(folder)
    assert [(job["outcome"], job["status"], job["version"]) for job in jobs] == [
        ("completed", "completed", "v0001"),
        ("refused", "failed", None),
        ("failed", "failed", None),
        ("completed", "completed", "v0002"),
        ("skipped", "cancelled", None),
        ("completed", "completed", "v0003"),
    ]
    assert [row["step"] for row in metrics[3]] == list(range(1, 41))
    assert jobs[3]["resume_from_checkpoint"] is not None
    verdicts = [(job["metadata"]["decision"], job["metadata"]["decision_reason"]) for job in jobs]
    assert verdicts[0] == verdicts[3] == verdicts[5] == ("promote", "stub")  # the first from its manifest
    assert rebuild_ledger(folder.paths, folder.config) == 6
    assert rows(folder) == (jobs, metrics)


@pytest.mark.config_key("ledger.url")
def test_an_empty_url_keeps_the_ledger_in_status(lived: Path, tmp_path: Path) -> None:
    assert Folder(lived).paths.ledger.stat().st_size > 0
    elsewhere = Folder(tmp_path / "base", f"sqlite:///{tmp_path}/elsewhere.db")
    elsewhere.job(1)
    rebuild_ledger(elsewhere.paths, elsewhere.config)
    assert (tmp_path / "elsewhere.db").stat().st_size > 0
    assert not elsewhere.paths.ledger.exists()


def test_each_difference_is_named(folder: Folder) -> None:
    first = folder.job(1, plan(), *steps(range(1, 4)))
    second = folder.job(2)
    rebuild_ledger(folder.paths, folder.config)
    assert ledger_differences(folder.paths, folder.config) == []
    folder.say(first, step(4, 0.125))
    shutil.rmtree(folder.paths.run(second.job_id).folder)
    third = folder.job(3)
    differences = ledger_differences(folder.paths, folder.config)
    assert f"{second.job_id}: in the ledger, but no run folder" in differences
    assert f"{third.job_id}: missing from the ledger" in differences
    assert f"{first.job_id} step 4: missing from the ledger" in differences
    assert f"{first.job_id}: current_step is 3 in the ledger, 4 by its directory" in differences


def test_a_rebuild_removes_what_no_directory_says(folder: Folder) -> None:
    folder.job(1, plan(), *steps(range(1, 9)))
    gone = folder.job(2, plan(), *steps(range(1, 9)))
    rebuild_ledger(folder.paths, folder.config)
    shutil.rmtree(folder.paths.run(gone.job_id).folder)
    assert rebuild_ledger(folder.paths, folder.config) == 1
    assert ledger_differences(folder.paths, folder.config) == []


def test_a_base_folder_without_jobs_needs_no_ledger(sqlite_folder: Folder) -> None:
    assert ledger_differences(sqlite_folder.paths, sqlite_folder.config) == []
    sqlite_folder.job(1)
    (difference,) = ledger_differences(sqlite_folder.paths, sqlite_folder.config)
    assert "there is no ledger" in difference
    with pytest.raises(UsageError, match="trainbox ledger rebuild"):
        recorded_jobs(sqlite_folder.paths, sqlite_folder.config)
    assert not sqlite_folder.paths.ledger.exists()


def test_a_rebuild_sets_a_damaged_file_aside(sqlite_folder: Folder) -> None:
    sqlite_folder.job(1)
    sqlite_folder.paths.ledger.write_bytes(b"this is no database" * 100)
    assert rebuild_ledger(sqlite_folder.paths, sqlite_folder.config) == 1
    aside = sqlite_folder.paths.ledger.with_name("ledger.db.damaged-1")
    assert aside.read_bytes().startswith(b"this is no database")
    assert ledger_differences(sqlite_folder.paths, sqlite_folder.config) == []


def test_a_rebuild_that_cannot_be_done_leaves_the_ledger_as_it_was(sqlite_folder: Folder) -> None:
    sqlite_folder.job(1)
    rebuild_ledger(sqlite_folder.paths, sqlite_folder.config)
    sqlite_folder.job(2)
    with sqlite3.connect(sqlite_folder.paths.ledger) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(EnvironmentNotReady, match=r"ledger\.db: database is locked"):
            rebuild_ledger(sqlite_folder.paths, sqlite_folder.config)
    other.close()
    assert len(recorded_jobs(sqlite_folder.paths, sqlite_folder.config)) == 1


def test_a_run_whose_document_is_damaged_has_no_row(sqlite_folder: Folder) -> None:
    job = sqlite_folder.job(1)
    sqlite_folder.paths.run(job.job_id).job_file.write_bytes(b"{")
    assert read_run(sqlite_folder.paths, job.job_id) == (None, {})
    assert rebuild_ledger(sqlite_folder.paths, sqlite_folder.config) == 0
    assert ledger_differences(sqlite_folder.paths, sqlite_folder.config) == []


def test_an_unreachable_server_is_named_without_its_password(tmp_path: Path, server: Server) -> None:
    folder = Folder(tmp_path / "base", server.url("nowhere").replace("postgres@", "postgres:secret@"))
    with pytest.raises(EnvironmentNotReady) as refusal:
        rebuild_ledger(folder.paths, folder.config)
    assert "nowhere" in str(refusal.value)
    assert "secret" not in str(refusal.value)
