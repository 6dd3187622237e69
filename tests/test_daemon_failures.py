"""Every way in which a worker can die, through the whole daemon: told apart, tried again, put away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon_base import LONG, Base
from tests.memory_cgroup import memory_cgroup
from tests.waiting import wait_until


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    made = Base(tmp_path / "base", worker=str(Path(__file__).with_name("odd_worker.py")))
    yield made
    made.close()


@pytest.mark.config_key("worker.max_restarts")
def test_every_death_has_its_kind_is_tried_again_and_put_away_and_the_next_file_trains(base: Base) -> None:
    with memory_cgroup(f"trainbox-test-{os.getpid()}", 40 * 2**20) as cgroup:
        scripts: dict[str, dict[str, Any]] = {
            "crash": {"crash_at": 2, "crash_times": 9},
            "killed": {"crash_at": 2, "crash_times": 9, "signal": "SIGKILL"},
            "hang": {"hang_at": 1},
            "oom": {"odd": str(cgroup)},
            "garbage": {"odd": "garbage"},
            "silent": {"odd": "silent"},
        }
        for kind, script in scripts.items():
            base.drop(f"{kind}.jsonl", **script)
        base.drop("sound.jsonl")
        base.run("worker.max_restarts=1", "worker.hang_seconds=20", seconds=600.0)
    jobs = {job.name.removesuffix(".jsonl"): job for job in base.jobs()}
    # The stub hangs the first time only: it is the one that a second attempt helps.
    assert jobs.pop("hang").outcome == "completed"
    assert jobs.pop("sound").outcome == "completed"
    assert {name: (job.failure_kind, job.attempts) for name, job in jobs.items()} == {
        name: (name, 2) for name in jobs
    }
    assert base.files("failed") == {f"{name}.jsonl" for name in jobs}
    words = {
        "crash": "exit code 7",
        "killed": "killed from outside",
        "oom": "memory ran out",
        "garbage": "what is no event",
        "silent": "exit code 0 and no outcome",
    }
    for name, expected in words.items():
        report = (base.paths.failed / f"{name}.jsonl.report.txt").read_text(encoding="utf-8")
        assert expected in report, report


def test_a_worker_and_its_children_are_gone_once_the_daemon_was_killed(base: Base) -> None:
    base.worker = str(Path(__file__).with_name("guarded_worker.py"))
    base.drop(**LONG, has_child=True)
    daemon = base.start()
    wait_until(lambda: base.is_at_step(3))
    family = psutil.Process(daemon.pid).children(recursive=True)
    assert any(process.name() == "sleep" for process in family)
    daemon.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, family)))
    daemon.communicate()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_group_that_is_led_by_another_is_left_alone(tmp_path: Path) -> None:
    code = "from training.guard import start_guard; start_guard(); print('alive', flush=True)"
    bystander = subprocess.run(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}]); "
         "print('alive too', flush=True)"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True, text=True, process_group=0, check=False,
    )  # fmt: skip
    assert bystander.stdout.split("\n") == ["alive", "alive too", ""]
