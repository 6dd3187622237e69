"""The real daemon as a child process, with real signals and a real worker process that needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import durable
from tests.daemon_base import LONG, ROOT, Base
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.versions import VersionStore


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    made = Base(tmp_path / "base")
    yield made
    made.close()


# The way of a file


def test_a_dropped_file_becomes_the_current_version_and_goes_to_done(base: Base) -> None:
    base.drop(steps=3)
    base.run()
    job = base.job()
    assert (job.state, job.outcome, job.version, job.attempts) == ("finished", "completed", "v0001", 1)
    assert base.paths.current.resolve().name == "v0001"
    assert base.files("done") == {"a.jsonl"}
    assert base.files("processing") == set()
    report = durable.read_json(base.paths.done / "a.jsonl.report.json")
    assert (report["job"]["version"], report["job"]["outcome"]) == ("v0001", "completed")
    assert [event["event"] for event in base.events(job)][-2:] == ["published", "outcome"]


def test_a_file_dropped_while_the_daemon_rests_is_taken(base: Base) -> None:
    daemon = base.start()
    wait_until(lambda: base.is_in("idle"))
    base.drop(steps=3)
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    wait_until(lambda: base.is_in("idle"))
    assert (base.status.status, base.status.version, base.status.loss) == ("completed", "v0001", 1 / 3)
    base.end(daemon)


def test_a_slow_copy_is_taken_whole_also_when_it_began_before_the_daemon(base: Base) -> None:
    path = base.paths.inbox / "slow.jsonl"
    path.write_bytes(b'{"stub": {}')
    daemon = base.start()
    for _ in range(10):
        time.sleep(0.1)  # slower than the scans, faster than the settling
        with path.open("ab") as file:
            file.write(b" ")
    with path.open("ab") as file:
        file.write(b"}\n")
    wait_until(lambda: base.files("done") == {"slow.jsonl"})
    assert (base.paths.done / "slow.jsonl").read_bytes() == b'{"stub": {}' + b" " * 10 + b"}\n"
    assert len(base.jobs()) == 1
    base.end(daemon)


def test_high_comes_before_normal_before_low(base: Base) -> None:
    for name in ("b.jsonl", "low/c.jsonl", "high/a.jsonl", "low/d.jsonl", "team/e.jsonl"):
        base.drop(name)
    base.run()
    order = sorted(base.jobs(), key=lambda job: int((job.version or "v0")[1:]))
    assert [job.name for job in order] == ["a.jsonl", "b.jsonl", "e.jsonl", "c.jsonl", "d.jsonl"]
    assert (base.paths.inbox / "team").is_dir()


def test_files_are_claimed_while_a_job_runs(base: Base) -> None:
    base.drop("long.jsonl", **LONG)
    daemon = base.start()
    wait_until(lambda: base.is_at_step(1))
    base.drop("high/urgent.jsonl")
    base.drop("later.jsonl")
    wait_until(lambda: base.status.queue.next_files == ("long.jsonl", "urgent.jsonl", "later.jsonl"))
    assert (base.status.queue.high, base.status.queue.normal, base.status.batch_queue_size) == (1, 2, 3)
    base.end(daemon)


def test_a_refused_file_goes_to_rejected_with_its_card(base: Base) -> None:
    base.drop(refuse="no usable record")
    base.run()
    assert base.files("rejected") == {"a.jsonl"}
    report = durable.read_json(base.paths.rejected / "a.jsonl.report.json")
    assert (report["usable"], report["reason"], report["job"]["outcome"]) == (
        *(False, "no usable record"),
        "refused",
    )


@pytest.mark.config_key("inbox.allow_duplicates")
def test_the_same_bytes_are_not_trained_twice_unless_allowed(base: Base) -> None:
    base.drop("a.jsonl", tag="same")
    base.drop("b.jsonl", tag="same")
    base.run()
    assert base.inputs_of_versions() == ["a.jsonl"]
    assert base.files("done") == {"a.jsonl", "b.jsonl"}
    base.drop("c.jsonl", tag="same")
    base.run("inbox.allow_duplicates=true")
    assert base.inputs_of_versions() == ["a.jsonl", "c.jsonl"]


def test_things_left_in_place_are_told_in_the_status_and_hold_nobody_up(base: Base) -> None:
    (base.paths.inbox / "notes.docx").touch()
    (base.paths.inbox / "link.jsonl").symlink_to("/etc/passwd")
    base.drop()
    log = base.run()
    assert set(base.status.queue.left_in_place) == {"notes.docx", "link.jsonl"}
    assert log.count("Left inbox/notes.docx in place") == 1
    assert base.files("done") == {"a.jsonl"}


def test_a_missing_inbox_is_told_and_the_daemon_goes_on(base: Base) -> None:
    daemon = base.start()
    wait_until(lambda: base.is_in("idle"))
    base.paths.inbox.rename(base.paths.base / "unmounted")
    wait_until(lambda: base.status.queue.trouble)
    (base.paths.base / "unmounted").rename(base.paths.inbox)
    base.drop()
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    assert base.status.queue.trouble is None
    base.end(daemon)


def test_steps_add_up_over_files(base: Base) -> None:
    for name, steps in (("a.jsonl", 3), ("b.jsonl", 4), ("c.jsonl", 5)):
        base.drop(name, steps=steps)
        base.run()
    assert (base.status.batch_step, base.status.current_step, base.status.total_steps) == (5, 12, 12)
    assert [version.facts.parent for version in VersionStore(base.paths).list()] == [None, "v0001", "v0002"]


# Attempts


def test_a_crash_is_resumed_from_the_last_checkpoint(base: Base) -> None:
    base.drop(steps=20, checkpoint_every=5, crash_at=13)
    base.run()
    job = base.job()
    assert job.outcome == "completed"
    assert base.steps(job) == [*range(1, 13), *range(11, 21)]


@pytest.mark.config_key("worker.max_restarts")
@pytest.mark.parametrize("max_restarts", [0, 2])
def test_a_poison_file_fails_after_max_restarts_and_the_next_trains(base: Base, max_restarts: int) -> None:
    base.drop("a.jsonl", crash_at=2, crash_times=99)
    base.drop("b.jsonl")
    base.run(f"worker.max_restarts={max_restarts}")
    poison, good = base.jobs()
    assert (poison.outcome, poison.failure_kind, poison.attempts) == ("failed", "crash", max_restarts + 1)
    assert base.files("failed") == {"a.jsonl"}
    text = (base.paths.failed / "a.jsonl.report.txt").read_text(encoding="utf-8")
    assert "exit code 7" in text and "about to die" in text
    assert good.outcome == "completed"


def test_a_crash_is_shown_in_the_status(base: Base) -> None:
    base.drop(crash_at=2, crash_times=99, signal="SIGKILL")
    base.run("worker.max_restarts=0")
    assert (base.status.status, base.status.error_type) == ("crashed", "killed")
    assert base.status.batch_step == 1


def test_a_worker_that_hangs_is_killed_and_the_job_resumed(base: Base) -> None:
    base.drop(steps=5, hang_at=3)
    log = base.run("worker.hang_seconds=20")
    assert "said nothing for 20 s" in log
    assert base.job().outcome == "completed"


def test_new_checkpoints_forgive_earlier_crashes(base: Base) -> None:
    base.drop(steps=20, checkpoint_every=1, crash_at=10, crash_times=2)
    base.run("worker.max_restarts=1")
    assert base.job().outcome == "failed"
    base.drop("b.jsonl", steps=20, checkpoint_every=1, crash_at=10, crash_times=1)
    base.run("worker.max_restarts=1")
    assert base.jobs()[1].outcome == "completed"


def test_a_failure_that_would_happen_again_is_not_tried_again(base: Base) -> None:
    base.drop(fail="nan")
    base.run()
    assert (base.job().outcome, base.job().failure_kind, base.job().attempts) == ("failed", "nan", 1)


def test_waiting_for_the_environment_uses_no_attempt(base: Base) -> None:
    base.drop(wait_times=3)
    log = base.run("worker.max_restarts=0")
    assert (base.job().outcome, base.job().attempts) == ("completed", 1)
    assert log.count("the GPU is busy") >= 3


def test_completed_needs_a_version_that_names_the_job(base: Base) -> None:
    base.drop(is_silent_liar=True)
    base.run()
    assert (base.job().outcome, base.job().failure_kind) == ("failed", "unpublished")


def test_a_published_job_is_completed_even_if_its_worker_died_of_it(base: Base) -> None:
    base.drop(publish_then_die=True)
    base.run()
    assert (base.job().outcome, base.job().version) == ("completed", "v0001")
    assert base.paths.current.resolve().name == "v0001"


def test_an_inbox_that_vanishes_under_a_job_costs_it_nothing(base: Base) -> None:
    base.drop(steps=40, hold_at=(5,))
    daemon = base.start()
    wait_until(lambda: base.is_at_step(3))
    base.paths.inbox.rename(base.paths.base / "unmounted")
    base.let_go(5)
    wait_until(lambda: base.is_in("waiting"))
    assert "make it again or mount it" in base.status.message
    assert (base.job().outcome, base.job().state) == ("completed", "running")
    (base.paths.base / "unmounted").rename(base.paths.inbox)
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    assert (base.job().outcome, base.job().version, base.job().attempts) == ("completed", "v0001", 1)
    base.end(daemon)


def test_a_file_that_could_not_be_moved_when_claimed_is_filed_all_the_same(base: Base) -> None:
    base.drop()
    base.paths.processing.rmdir()
    base.paths.processing.touch()
    daemon = base.start()
    wait_until(lambda: base.is_in("waiting"))
    base.paths.processing.unlink()
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    assert not (base.paths.inbox / "a.jsonl").exists()
    assert (base.job().outcome, base.job().attempts) == ("completed", 1)
    base.end(daemon)


# Control


def test_pause_in_training_saves_and_ends_the_worker_and_resume_goes_on_from_the_exact_step(
    base: Base,
) -> None:
    base.drop(steps=60, hold_at=(20,))
    daemon = base.start()
    wait_until(lambda: base.is_at_step(5))
    base.command("pause", "gaming")
    wait_until(lambda: base.is_in("paused") and base.acknowledged("pause"))
    control = base.status.control
    assert (control.reason, base.status.status) == ("gaming", "paused")
    assert base.workers() == []
    job = base.job()
    assert (job.state, job.step, job.attempts) == ("queued", control.step, 0)
    assert base.steps(job) == list(range(1, control.step + 1))
    base.let_go(20)
    base.command("resume")
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    assert not base.paths.control("pause").exists()
    assert base.steps(base.job()) == list(range(1, 61))
    base.end(daemon)


def test_a_pause_survives_a_restart_and_a_kill(base: Base) -> None:
    base.command("pause")
    base.drop()
    for number in (signal.SIGTERM, signal.SIGKILL):
        daemon = base.start()
        wait_until(lambda: base.is_in("paused") and base.status.queue.normal == 1)
        daemon.send_signal(number)
        daemon.communicate()
    assert base.paths.control("pause").exists()
    daemon = base.start()
    wait_until(lambda: base.is_in("paused"))
    base.command("resume")
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    base.end(daemon)


def test_commands_without_a_job_are_acknowledged(base: Base) -> None:
    daemon = base.start()
    wait_until(lambda: base.is_in("idle"))
    for command, answer in (("skip", "nothing to skip"), ("resume", "nothing to resume"), ("pause", None)):
        base.command(command)
        wait_until(lambda command=command: base.acknowledged(command))  # type: ignore[misc]
        assert base.status.control.message == answer
    assert base.is_in("paused")
    base.end(daemon)


def test_skip_drops_the_running_file_and_the_next_one_begins(base: Base) -> None:
    base.drop("a.jsonl", **LONG)
    base.drop("b.jsonl")
    daemon = base.start()
    wait_until(lambda: base.is_at_step(3))
    base.command("skip", "wrong file")
    wait_until(lambda: base.files("done") == {"b.jsonl"})
    assert base.files("skipped") == {"a.jsonl"}
    assert base.acknowledged("skip")
    assert base.status.control.step >= 3
    assert [job.outcome for job in base.jobs()] == ["skipped", "completed"]
    base.end(daemon)


def test_skip_while_paused_drops_the_interrupted_file_only(base: Base) -> None:
    base.drop("a.jsonl", **LONG)
    base.drop("b.jsonl")
    daemon = base.start()
    wait_until(lambda: base.is_at_step(3))
    base.command("pause")
    wait_until(lambda: base.is_in("paused"))
    base.command("skip")
    wait_until(lambda: base.files("skipped") == {"a.jsonl"})
    base.command("skip")
    wait_until(lambda: base.acknowledged("skip") and base.status.control.message == "nothing to skip")
    assert [job.outcome for job in base.jobs()] == ["skipped", None]
    base.end(daemon)


def test_stop_in_training_saves_exits_with_0_and_the_next_start_goes_on(base: Base) -> None:
    base.drop(steps=60, hold_at=(20,))
    daemon = base.start()
    wait_until(lambda: base.is_at_step(5))
    base.command("stop", "holidays")
    base.ended(daemon)
    assert (base.status.state, base.status.control.reason) == ("stopped", "holidays")
    assert base.acknowledged("stop")
    assert base.reading is not None and not base.reading.is_running and not base.reading.is_stale
    assert not base.paths.control("stop").exists()
    assert (base.job().state, base.job().attempts) == ("queued", 0)
    base.let_go(20)
    base.run()
    assert base.steps(base.job()) == list(range(1, 61))


def test_a_stop_from_before_the_start_is_ignored(base: Base) -> None:
    base.command("stop")
    base.drop()
    assert "Ignored a .stop older than this daemon" in base.run()
    assert base.files("done") == {"a.jsonl"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_training_saves_and_the_next_start_goes_on_from_the_exact_step(
    base: Base, number: int
) -> None:
    base.drop(steps=60, hold_at=(20,))
    daemon = base.start()
    wait_until(lambda: base.is_at_step(5))
    base.end(daemon, number)
    step = base.status.control.step
    assert base.steps(base.job()) == list(range(1, step + 1))
    assert base.workers() == []
    base.let_go(20)
    base.run()
    assert base.steps(base.job()) == list(range(1, 61))
    assert base.job().attempts == 1


@pytest.mark.parametrize("is_paused", [True, False])
@pytest.mark.parametrize("by_file", [True, False])
def test_a_daemon_without_a_job_ends_at_once(base: Base, is_paused: bool, by_file: bool) -> None:
    if is_paused:
        base.command("pause")
    daemon = base.start("inbox.poll_seconds=3600")  # what is not seen at once is never seen
    wait_until(lambda: base.is_in("paused" if is_paused else "idle"))
    if by_file:
        base.command("stop")
    else:
        daemon.send_signal(signal.SIGTERM)
    base.ended(daemon)
    assert base.acknowledged("stop")
    assert base.paths.control("pause").exists() == is_paused


def test_a_second_signal_means_now(base: Base) -> None:
    base.drop(**LONG, is_deaf=True)
    daemon = base.start("worker.stop_grace_seconds=3600")
    wait_until(lambda: base.is_at_step(3))
    daemon.send_signal(signal.SIGTERM)
    wait_until(lambda: base.status.status == "stopping")
    base.end(daemon)
    assert base.workers() == []
    assert base.job().state == "queued"


# One daemon, and what is left when it is killed


def test_a_second_daemon_refuses_with_the_pid_of_the_first(base: Base) -> None:
    first = base.start()
    wait_until(lambda: base.is_in("idle"))
    second = subprocess.run(
        [sys.executable, str(ROOT / "daemon.py"), "--base", str(base.paths.base)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert f"pid {first.pid}" in second.stderr
    assert base.is_in("idle")
    base.end(first)


def test_of_many_daemons_started_at_once_one_works(base: Base) -> None:
    processes = [base.start() for _ in range(6)]
    wait_until(lambda: sum(process.poll() is None for process in processes) == 1)
    (winner,) = [process for process in processes if process.poll() is None]
    wait_until(lambda: base.is_in("idle") and base.status.pid == winner.pid)
    base.end(winner)


def test_a_killed_daemon_takes_its_worker_along_and_is_seen_to_be_gone(base: Base) -> None:
    base.drop(steps=60, checkpoint_every=5, hold_at=(40,))
    daemon = base.start()
    wait_until(lambda: base.is_at_step(12))
    daemon.kill()
    daemon.communicate()
    wait_until(lambda: base.workers() == [])
    base.let_go(40)
    assert base.reading is not None
    assert (base.reading.is_running, base.reading.is_stale) == (False, True)
    base.run()
    job = base.job()
    assert (job.outcome, job.state) == ("completed", "finished")
    assert base.inputs_of_versions() == ["a.jsonl"]
    resumed_at = base.steps(job).index(60) + 1
    assert resumed_at == len(base.steps(job))


def test_however_often_it_is_killed_each_file_is_trained_once_and_none_is_lost(base: Base) -> None:
    names = {f"{number}.jsonl" for number in range(6)}
    for name in sorted(names):
        base.drop(name, steps=5, step_seconds=0.01, checkpoint_every=1)
    for kill in range(10):
        daemon = base.start("inbox.settle_seconds=0.05", "worker.max_restarts=100")
        time.sleep(0.3 + 0.07 * kill)  # the moment of the kill, spread over the life of a daemon
        daemon.kill()
        daemon.communicate()
        wait_until(lambda: base.workers() == [])
    base.run("worker.max_restarts=100")
    assert base.files("done") == names
    assert sorted(base.inputs_of_versions()) == sorted(names)
    assert {job.state for job in base.jobs()} == {"finished"}
    assert base.files("processing") == set()
    assert not list(base.paths.runs.glob(".*"))
    before = sorted(str(path) for path in base.paths.inbox.rglob("*"))
    base.run()
    assert sorted(str(path) for path in base.paths.inbox.rglob("*")) == before


# What the world is told


def test_the_status_is_whole_json_at_every_instant(base: Base) -> None:
    finished = threading.Event()
    states: set[str] = set()

    def read() -> None:
        while not finished.is_set():
            with contextlib.suppress(FileNotFoundError):
                states.add(json.loads(base.paths.status_file.read_bytes())["state"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        daemon = base.start("monitoring.status_seconds=0.001")
        wait_until(lambda: "idle" in states)
        base.drop(steps=200, hold_at=(100,))
        wait_until(lambda: "training" in states and base.is_at_step(99))
        base.let_go(100)
        wait_until(lambda: base.files("done") == {"a.jsonl"})
        base.end(daemon)
        wait_until(lambda: "stopped" in states or not reader.is_alive())
    finally:
        finished.set()
        reader.join()
    assert {"idle", "training", "stopped"} <= states


@pytest.mark.config_key("worker.preload")
@pytest.mark.parametrize("preload", [True, False])
def test_a_worker_is_made_ready_while_a_file_settles(base: Base, preload: bool) -> None:
    daemon = base.start(f"worker.preload={preload}", "inbox.settle_seconds=3600")
    wait_until(lambda: base.is_in("idle"))
    assert base.workers() == []
    base.drop()
    wait_until(lambda: base.status.queue.settling)
    if preload:
        wait_until(lambda: len(base.workers()) == 1)
    assert len(base.workers()) == int(preload)
    base.end(daemon)


@pytest.mark.config_key("inbox.poll_seconds")
def test_the_clock_alone_finds_a_file_within_poll_seconds(base: Base) -> None:
    twin = base.drop().rename(base.paths.base / "twin")
    (base.paths.inbox / "a.jsonl").hardlink_to(twin)
    daemon = base.start("inbox.poll_seconds=0.2", "inbox.settle_seconds=0")
    wait_until(lambda: base.is_in("idle") and "a.jsonl" in base.status.queue.left_in_place)
    twin.unlink()  # now the file is good, and no event of the inbox tells so
    wait_until(lambda: base.files("done") == {"a.jsonl"})
    base.end(daemon)


def test_systemd_hears_ready_status_and_stopping(base: Base, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(PATIENCE_SECONDS)
        daemon = base.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="60000000")
        heard: list[str] = []
        while "WATCHDOG=1" not in heard or "READY=1" not in heard:
            heard.append(listener.recv(1000).decode())
        daemon.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard.append(listener.recv(1000).decode())
        base.ended(daemon)
    assert any(line.startswith("STATUS=") for line in heard)


@pytest.mark.config_key("logging.level")
def test_the_level_says_what_is_logged(base: Base) -> None:
    base.drop()
    assert "INFO" in base.run()
    base.drop("b.jsonl")
    assert base.run("logging.level=ERROR") == ""
    assert "Claimed inbox/a.jsonl" in base.paths.log_file.read_text(encoding="utf-8")


@pytest.mark.config_key("logging.max_bytes", "logging.backups")
def test_the_log_is_rotated_at_max_bytes_and_backups_are_kept(base: Base) -> None:
    for number in range(4):
        base.drop(f"{number}.jsonl")
    base.run("logging.max_bytes=500", "logging.backups=2")
    logs = sorted(base.paths.log_file.parent.glob("daemon.log*"))
    assert [log.name for log in logs] == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert all(log.stat().st_size <= 500 for log in logs)


@pytest.mark.config_key("retention.run_logs")
@pytest.mark.parametrize("kept", [1, 3])
def test_the_newest_run_logs_are_kept(base: Base, kept: int) -> None:
    for number in range(1, 5):
        (base.paths.run_logs / f"{number:06d}-00000000.log").touch()
        (base.paths.runs / f"{number:06d}-00000000").mkdir()
    base.drop()
    base.run(f"retention.run_logs={kept}")
    names = sorted(path.name[:6] for path in base.paths.run_logs.glob("0*"))
    assert names == ["000003", "000004", "000005"][-kept:]


def test_a_folder_that_cannot_be_worked_in_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "status").touch()
    command = [sys.executable, str(ROOT / "daemon.py"), "--base", str(tmp_path), "--until-idle"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr.startswith("trainbox: ") and len(process.stderr.splitlines()) == 1


def test_what_a_dead_worker_left_of_a_version_is_removed(base: Base) -> None:
    leftover = base.paths.versions / ".v0001.partial"
    leftover.mkdir()
    (leftover / "adapter_model.safetensors").write_bytes(b"half")
    base.run()
    assert os.listdir(base.paths.versions) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "inbox.setle_seconds=1"], "did you mean 'inbox.settle_seconds'"),
        (["--base", "/nonexistent"], "/nonexistent: found no such folder"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_to_do(base: Base, arguments: list[str], message: str) -> None:
    process = subprocess.run(
        [sys.executable, str(ROOT / "daemon.py"), "--base", str(base.paths.base), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert message in process.stderr


def test_a_new_version_is_copied_to_the_second_root_before_an_idle_daemon_ends(
    base: Base, tmp_path: Path
) -> None:
    root = tmp_path / "second disk"
    root.mkdir()
    base.drop()
    base.run(f"backup.root={root}")
    assert durable.is_sealed(root / "v0001")


def test_a_second_root_that_is_away_is_told_and_stops_no_training(base: Base, tmp_path: Path) -> None:
    base.drop()
    log = base.run(f"backup.root={tmp_path / 'away'}")
    assert base.job().outcome == "completed"
    assert "mount its disk" in log
    assert "mount its disk" in base.status.queue.trouble


def test_checkpoints_of_finished_runs_go_when_the_budget_is_spent(base: Base) -> None:
    base.drop(steps=4, checkpoint_every=2)
    base.run("retention.max_bytes=0")
    assert list(base.paths.run(base.job().job_id).folder.glob("checkpoint-*")) == []
    assert VersionStore(base.paths).get("current").name == "v0001"
