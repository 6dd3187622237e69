"""The runner against real child processes: outcomes, crashes, hangs, wishes and the worker kept ready."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import durable
from config import Paths, WorkerConfig
from monitoring.events import Event, OutcomeEvent, StepEvent, now
from tests.waiting import wait_until
from training import runner as runner_module
from training.jobs import Job, JobStore, Source
from training.runner import Runner, Wish

STUB = (sys.executable, str(Path(__file__).parent.parent / "stub_worker.py"))


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


class Bench:
    """A runner with a job whose script a test writes."""

    def __init__(self, paths: Paths, **config: object) -> None:
        self.paths = paths
        self.runner = Runner(paths, WorkerConfig.model_validate(config), STUB)
        self.events: list[Event] = []
        self.wish: Wish | None = None
        self.wish_at_step: int | None = None
        self.beats = 0

    def job(self, number: int = 1, **script: Any) -> str:
        job = Job(
            job_id=f"{number:06d}-0a0a0a0a",
            number=number,
            sha256="0a" * 32,
            size_bytes=1,
            name="a.jsonl",
            place="a.jsonl",
            suffix=".jsonl",
            source=Source(relative_path="a.jsonl", device=1, inode=1, mtime_ns=1),
            claimed_at=now(),
        )
        run = self.paths.run(job.job_id)
        durable.make_folder(run.data)
        run.input(".jsonl").write_text(json.dumps({"stub": script}) + "\n", encoding="utf-8")
        JobStore(self.paths).save(job)
        return job.job_id

    def run(self, **script: Any) -> OutcomeEvent:
        return self.runner.run(self.job(**script), self.hear, self.beat)

    def hear(self, line: bytes, event: Event) -> None:
        assert line.endswith(b"\n")
        self.events.append(event)

    def beat(self) -> Wish | None:
        self.beats += 1
        steps = [event.step for event in self.events if isinstance(event, StepEvent)]
        due = self.wish_at_step is None or (steps and steps[-1] >= self.wish_at_step)
        return self.wish if due else None

    def log(self, name: str = "000001-0a0a0a0a") -> str:
        return (self.paths.run_logs / f"{name}.log").read_text(encoding="utf-8")


@pytest.fixture
def bench(paths: Paths, children_of_others: None) -> Iterator[Bench]:
    made = Bench(paths, hang_seconds=300.0, stop_grace_seconds=3600.0)
    yield made
    made.runner.release()
    assert children() == []


_OF_OTHERS: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def children_of_others() -> None:
    """Tell the processes that fixtures of other tests keep from those of this test."""
    _OF_OTHERS.update(psutil.Process().children(recursive=True))


def children() -> list[psutil.Process]:
    """Return the processes that the running test has started."""
    return [child for child in psutil.Process().children(recursive=True) if child not in _OF_OTHERS]


def test_a_job_runs_to_its_outcome_and_every_event_is_heard(bench: Bench) -> None:
    outcome = bench.run(steps=5)
    assert outcome.outcome == "completed"
    kinds = [event.event for event in bench.events if event.event != "heartbeat"]
    ending = ["checkpoint", "phase", "published", "outcome"]
    assert kinds == ["phase", "phase", "plan", "phase", *["step"] * 5, *ending]
    assert children() == []


def test_what_the_worker_prints_goes_to_the_log_of_its_job(bench: Bench) -> None:
    bench.run()
    assert "stub plays job 000001-0a0a0a0a" in bench.log()


def test_thousands_of_events_do_not_block_the_worker(bench: Bench) -> None:
    assert bench.run(steps=5000).outcome == "completed"
    assert sum(isinstance(event, StepEvent) for event in bench.events) == 5000


def test_a_crash_is_told_with_the_last_lines(bench: Bench) -> None:
    outcome = bench.run(crash_at=2)
    assert (outcome.outcome, outcome.kind) == ("failed", "crash")
    assert outcome.message is not None
    assert "exit code 7" in outcome.message and "about to die" in outcome.message


def test_a_death_by_signal_is_named(bench: Bench) -> None:
    outcome = bench.run(crash_at=2, signal="SIGSEGV")
    assert outcome.kind == "crash"
    assert outcome.message is not None and "SIGSEGV" in outcome.message


def test_a_kill_from_outside_is_told_apart_from_a_crash(bench: Bench) -> None:
    assert bench.run(crash_at=2, signal="SIGKILL").kind == "killed"


def test_a_kill_for_want_of_memory_is_told_apart(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([4, 5])
    monkeypatch.setattr(runner_module, "_oom_kills", lambda: next(counts))
    assert bench.run(crash_at=2, signal="SIGKILL").kind == "oom"


def test_the_kernel_counts_its_kills() -> None:
    assert runner_module._oom_kills() >= 0


@pytest.mark.config_key("worker.hang_seconds")
def test_a_worker_that_says_nothing_for_hang_seconds_is_killed(paths: Paths) -> None:
    bench = Bench(paths, hang_seconds=0.5)
    started_at = time.monotonic()
    outcome = bench.run(hang_at=2)
    assert (outcome.outcome, outcome.kind) == ("failed", "hang")
    assert outcome.message is not None and "0.5 s (worker.hang_seconds)" in outcome.message
    assert time.monotonic() - started_at > 0.5
    assert children() == []


@pytest.mark.parametrize(("wish", "outcome"), [("pause", "paused"), ("stop", "stopped"), ("skip", "skipped")])
def test_a_wish_ends_the_worker_at_the_next_step(bench: Bench, wish: Wish, outcome: str) -> None:
    bench.wish, bench.wish_at_step = wish, 3
    ended = bench.run(steps=100_000, step_seconds=0.01)
    assert ended.outcome == outcome
    assert ended.step is not None and ended.step >= 3
    assert bench.paths.run("000001-0a0a0a0a").checkpoint(ended.step).is_dir()


@pytest.mark.config_key("worker.stop_grace_seconds")
def test_a_worker_that_ignores_a_wish_is_killed_after_stop_grace_seconds(paths: Paths) -> None:
    bench = Bench(paths, stop_grace_seconds=0.3)
    bench.wish, bench.wish_at_step = "pause", 1
    outcome = bench.run(steps=100_000, step_seconds=0.01, is_deaf=True)
    assert outcome.outcome == "paused"
    assert outcome.message is not None and "without a last checkpoint" in outcome.message
    assert children() == []


def test_now_means_now(bench: Bench) -> None:
    bench.wish, bench.wish_at_step = "kill", 1
    assert bench.run(steps=1_000_000, step_seconds=0.01, is_deaf=True).outcome == "stopped"
    assert children() == []


def test_children_of_a_dead_worker_die_with_it(bench: Bench) -> None:
    outcome = bench.run(has_child=True, crash_at=2)
    assert outcome.kind == "crash"
    wait_until(lambda: children() == [])


def test_what_is_no_event_is_passed_over(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    assert bench.run(says_nonsense=True).outcome == "completed"
    assert "this is no event" in caplog.text


def test_an_error_in_the_beat_leaves_no_worker_behind(bench: Bench) -> None:
    def fail() -> Wish | None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        bench.runner.run(bench.job(steps=100_000, step_seconds=0.01, is_deaf=True), bench.hear, fail)
    assert children() == []


@pytest.mark.config_key("worker.preload")
def test_preload_keeps_one_worker_ready_and_the_job_takes_it(paths: Paths) -> None:
    bench = Bench(paths, preload=True)
    for _ in range(3):
        bench.runner.keep_ready(True)
    (standby,) = children()
    assert bench.run().outcome == "completed"
    assert not standby.is_running()
    unready = Bench(paths, preload=False)
    unready.runner.keep_ready(True)
    assert children() == []


def test_a_worker_kept_ready_for_nothing_is_let_go(paths: Paths) -> None:
    time_now = [0.0]
    runner = Runner(paths, WorkerConfig(), STUB, lambda: time_now[0])
    runner.keep_ready(True)
    time_now[0] += 59.0
    runner.keep_ready(False)
    assert len(children()) == 1
    time_now[0] += 2.0
    runner.keep_ready(False)
    assert children() == []


def test_the_death_of_the_worker_kept_ready_is_survived(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.runner.keep_ready(True)
    (standby,) = children()
    standby.send_signal(signal.SIGKILL)
    wait_until(lambda: standby.status() == psutil.STATUS_ZOMBIE)
    for _ in range(3):
        bench.runner.keep_ready(True)
    assert caplog.text.count("ended by itself") == 1
    assert children() == []
    assert bench.run().outcome == "completed"


def test_the_death_of_the_worker_kept_ready_is_noticed_when_a_job_comes(bench: Bench) -> None:
    bench.runner.keep_ready(True)
    (standby,) = children()
    standby.send_signal(signal.SIGKILL)
    wait_until(lambda: standby.status() == psutil.STATUS_ZOMBIE)
    assert bench.run().outcome == "completed"


def test_a_worker_that_waits_prints_to_a_log_of_its_own(paths: Paths) -> None:
    command = (sys.executable, "-c", "import sys; print('warming up', file=sys.stderr, flush=True); input()")
    runner = Runner(paths, WorkerConfig(), command)
    runner.keep_ready(True)
    log = paths.run_logs / "worker.log"
    wait_until(lambda: log.exists() and "warming up" in log.read_text(encoding="utf-8"))
    runner.release()
    assert children() == []


def test_the_worker_finds_our_modules_and_not_systemds_socket(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.chdir(tmp_path)
    code = "import os, training.jobs; print('seen', os.environ.get('NOTIFY_SOCKET'), flush=True)"
    runner = Runner(paths, WorkerConfig(), (sys.executable, "-P", "-c", code))
    runner.keep_ready(True)
    log = paths.run_logs / "worker.log"
    wait_until(lambda: log.exists() and "seen None" in log.read_text(encoding="utf-8"))
    runner.release()


def test_no_descriptor_is_left_open(bench: Bench) -> None:
    bench.run()
    before = os.listdir("/proc/self/fd")
    for number in range(2, 5):
        bench.runner.run(bench.job(number), bench.hear, bench.beat)
    assert len(os.listdir("/proc/self/fd")) == len(before)
