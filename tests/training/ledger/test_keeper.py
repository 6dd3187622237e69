"""The daemon's ledger follows its jobs, costs it nothing, and makes up for whatever a database does."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from errors import EnvironmentNotReady
from monitoring.events import OutcomeEvent
from monitoring.training_status import read_status
from tests.training.ledger.postgres import Server
from tests.training.ledger.run_folders import Folder, plan, step, steps
from tests.waiting import wait_until
from training.jobs import Job
from training.ledger.keeper import LedgerKeeper
from training.ledger.upkeep import ledger_differences, rebuild_ledger, recorded_jobs


@contextlib.contextmanager
def keeping(folder: Folder, batch_seconds: float = 0.02) -> Iterator[LedgerKeeper]:
    """Keep the ledger of a folder, as the daemon does."""
    keeper = LedgerKeeper(folder.paths, folder.config.ledger, batch_seconds=batch_seconds, retry_seconds=0.05)
    keeper.start()
    try:
        yield keeper
    finally:
        keeper.stop()


def differences(folder: Folder) -> list[str]:
    return ledger_differences(folder.paths, folder.config)


def is_kept(folder: Folder) -> bool:
    """Tell whether the ledger is there and up to date."""
    try:
        return differences(folder) == []
    except EnvironmentNotReady:  # its tables are not there yet
        return False


def test_a_job_is_followed_while_it_runs(folder: Folder) -> None:
    job = folder.job(1, plan(), step(1), state="running", started=True)
    with keeping(folder) as keeper:
        for number in range(2, 11):
            folder.say(job, step(number))
            keeper.note(job)
            wait_until(lambda: is_kept(folder))
        assert recorded_jobs(folder.paths, folder.config)[0]["current_step"] == 10


def test_a_resumed_job_is_followed_without_its_first_try(folder: Folder) -> None:
    job = folder.job(1, plan(), *steps(range(1, 8)), state="running", started=True)
    with keeping(folder) as keeper:
        keeper.note(job)
        wait_until(lambda: is_kept(folder))
        folder.say(job, plan(start_step=5))
        keeper.note(job)
        wait_until(lambda: is_kept(folder))
        folder.say(job, step(6, 7.0))
        keeper.note(job)
    assert differences(folder) == []


def test_the_end_writes_what_is_left(folder: Folder) -> None:
    with keeping(folder, batch_seconds=60) as keeper:
        job = folder.job(1, plan(), *steps(range(1, 8)))
        keeper.note(job)
    assert differences(folder) == []


def test_a_base_folder_that_never_had_a_job_gets_no_ledger(sqlite_folder: Folder) -> None:
    with keeping(sqlite_folder):
        pass
    assert not sqlite_folder.paths.ledger.exists()


def test_what_changed_while_nobody_kept_it_is_made_up_for(folder: Folder) -> None:
    kept, changed, gone = (
        folder.job(number, plan(), state="finished", outcome="failed") for number in (1, 2, 3)
    )
    rebuild_ledger(folder.paths, folder.config)
    folder.say(changed, step(1))
    (folder.paths.run(gone.job_id).job_file).unlink()
    folder.job(4)
    with keeping(folder):
        pass
    assert differences(folder) == []
    assert [job["number"] for job in recorded_jobs(folder.paths, folder.config)] == [kept.number, 2, 4]


def test_finished_jobs_in_the_ledger_are_not_read_again(folder: Folder) -> None:
    """A start looks at the sizes and times of their files only."""
    done = folder.job(1, plan(), step(1, 0.5), state="finished", outcome="completed")
    rebuild_ledger(folder.paths, folder.config)
    events = folder.paths.run(done.job_id).events
    facts = events.stat()
    events.write_bytes(events.read_bytes().replace(b'"loss":0.5', b'"loss":0.7'))
    os.utime(events, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    folder.job(2)
    with keeping(folder):
        pass
    assert [job["loss"] for job in recorded_jobs(folder.paths, folder.config)] == [0.5, None]
    os.utime(events)
    with keeping(folder):
        pass
    assert differences(folder) == []


def test_noting_a_step_costs_the_daemon_microseconds(sqlite_folder: Folder) -> None:
    job = sqlite_folder.job(1, plan(), state="running", started=True)
    with keeping(sqlite_folder, batch_seconds=60) as keeper:
        started_at = time.thread_time()
        for _ in range(10_000):
            keeper.note(job)
        assert time.thread_time() - started_at < 0.5


def test_a_locked_ledger_is_told_and_made_up_for(
    sqlite_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    job = sqlite_folder.job(1, plan(), state="running", started=True)
    rebuild_ledger(sqlite_folder.paths, sqlite_folder.config)
    other = sqlite3.connect(sqlite_folder.paths.ledger)
    other.execute("BEGIN EXCLUSIVE")
    with keeping(sqlite_folder) as keeper:
        wait_until(lambda: keeper.trouble is not None)
        assert "database is locked" in str(keeper.trouble)
        sqlite_folder.say(job, step(1))
        keeper.note(job)
        other.close()
        wait_until(lambda: keeper.trouble is None)
        assert differences(sqlite_folder) == []
    told = [record.message for record in caplog.records if "will catch up" in record.message]
    assert len(told) == 1


def test_a_ledger_damaged_under_the_daemon_is_set_aside_and_made_again(sqlite_folder: Folder) -> None:
    job = sqlite_folder.job(1, plan(), state="running", started=True)
    with keeping(sqlite_folder) as keeper:
        wait_until(lambda: is_kept(sqlite_folder))
        sqlite_folder.paths.ledger.write_bytes(b"\xa5" * 8192)
        sqlite_folder.say(job, step(1))
        keeper.note(job)
        aside = sqlite_folder.paths.ledger.with_name("ledger.db.damaged-1")
        wait_until(aside.exists)
    assert differences(sqlite_folder) == []
    assert aside.read_bytes() == b"\xa5" * 8192


def test_a_ledger_removed_under_the_daemon_is_made_again(sqlite_folder: Folder) -> None:
    job = sqlite_folder.job(1, plan(), state="running", started=True)
    sqlite_folder.job(2, plan(), state="finished", outcome="failed")
    with keeping(sqlite_folder) as keeper:
        wait_until(lambda: is_kept(sqlite_folder))
        sqlite_folder.paths.ledger.unlink()
        keeper.note(job)
        wait_until(lambda: is_kept(sqlite_folder))


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted by root")
def test_a_full_disk_is_told_and_made_up_for(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        folder = Folder(tmp_path / "base", f"sqlite:///{small}/ledger.db")
        job = folder.job(1, plan(2000), state="running", started=True)
        rebuild_ledger(folder.paths, folder.config)
        ballast = small / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        folder.say(job, *steps(range(1, 2001)))
        with keeping(folder) as keeper:
            wait_until(lambda: "full" in str(keeper.trouble))
            ballast.unlink()
            wait_until(lambda: keeper.trouble is None)
        assert differences(folder) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_server_that_is_away_is_told_and_made_up_for(tmp_path: Path, server: Server) -> None:
    folder = Folder(tmp_path / "base", server.emptied())
    job = folder.job(1, plan(), step(1), state="running", started=True)
    with keeping(folder) as keeper:
        wait_until(lambda: is_kept(folder))
        server.stop()
        folder.say(job, step(2))
        keeper.note(job)
        wait_until(lambda: "onnection" in str(keeper.trouble))
        server.start()
        wait_until(lambda: keeper.trouble is None)
        assert differences(folder) == []


def test_two_begin_and_one_end_leave_the_right_rows(folder: Folder) -> None:
    """A paused job lies in between while another runs."""
    paused = folder.job(1, plan(), step(1), OutcomeEvent(outcome="paused", step=1), started=True)
    running = folder.job(2, plan(), step(1), state="running", started=True)
    with keeping(folder) as keeper:
        for number in range(2, 5):
            folder.say(running, step(number))
            for job in (paused, running):
                keeper.note(job)
        ended = running.model_copy(update={"state": "finished", "outcome": "failed"})
        folder.store.save(ended)
        keeper.note(ended)
    assert differences(folder) == []


# With the daemon itself


def test_a_daemon_whose_ledger_cannot_be_written_trains_all_the_same_and_says_so(
    sqlite_folder: Folder,
) -> None:
    sqlite_folder.paths.ledger.mkdir()
    sqlite_folder.drop("a.jsonl", steps=3)
    log = sqlite_folder.run()
    (job,) = sqlite_folder.store.all()
    assert job.outcome == "completed"
    assert log.count("The ledger is behind the directories and will catch up") == 1
    reading = read_status(sqlite_folder.paths)
    assert reading is not None
    assert "unable to open database file" in str(reading.status.ledger_trouble)
    sqlite_folder.paths.ledger.rmdir()
    sqlite_folder.run()
    assert differences(sqlite_folder) == []
    reading = read_status(sqlite_folder.paths)
    assert reading is not None and reading.status.ledger_trouble is None


def test_a_changed_job_is_noted_whatever_changes_it(sqlite_folder: Folder) -> None:
    from training.job_queue import JobQueue, begun, changed

    noted: list[Job] = []
    job = sqlite_folder.job(1)
    queue = JobQueue(sqlite_folder.store, noted.append)
    queue.add(job)
    queue.save(begun(job))
    queue.put_back(job)
    queue.finish(changed(job, outcome="failed"))
    assert [one.job_id for one in noted] == [job.job_id] * 4
