"""A base folder with the real daemons that a test starts on it, and the worker that needs no torch."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

import durable
from config import Paths
from monitoring.training_status import Reading, read_status
from tests.stub_worker import let_go_file
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.jobs import Job, JobStore
from training.versions import VersionStore

ROOT = Path(__file__).parent.parent
STUB = ROOT / "tests" / "stub_worker.py"
LAUNCH = """
import sys, daemon
from pathlib import Path
base, worker, until_idle, *overrides = sys.argv[1:]
code = daemon.run(
    Path(base), overrides=overrides, until_idle=until_idle == "1",
    worker_command=(sys.executable, *worker.split()), retry_seconds=0.1,
)
heavy = {"torch", "transformers", "trl", "peft", "numpy"} & set(sys.modules)
sys.exit(f"the daemon imported {heavy}" if heavy else code)
"""
QUICK = (
    *("inbox.settle_seconds=0.2", "inbox.poll_seconds=0.05", "monitoring.status_seconds=0.1"),
    "disk.min_free_bytes=0",
)
LONG: dict[str, Any] = {"steps": 100_000, "step_seconds": 0.01}


class Base:
    """A base folder, and the daemons that a test starts on it; `worker` is what Python is told to run."""

    launcher: tuple[str, ...] = ()
    """What the daemon is started by, where not directly."""

    def __init__(self, folder: Path, worker: str = str(STUB)) -> None:
        self.worker = worker
        self.paths = Paths(folder)
        self.paths.create()
        self.started: list[subprocess.Popen[bytes]] = []

    def drop(self, name: str = "a.jsonl", *, tag: str = "", **script: object) -> Path:
        path = self.paths.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"stub": script, "tag": tag or name}) + "\n", encoding="utf-8")
        return path

    def start(self, *overrides: str, until_idle: bool = False, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", LAUNCH, str(self.paths.base), self.worker, str(int(until_idle))]
        process = subprocess.Popen(
            [*self.launcher, *command, *QUICK, *overrides],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, *overrides: str, seconds: float = 2 * PATIENCE_SECONDS) -> str:
        """Run a daemon until it is idle and return its log."""
        process = self.start(*overrides, until_idle=True)
        _, log = process.communicate(timeout=seconds)
        assert process.returncode == 0, log.decode()
        return log.decode()

    def end(self, process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> str:
        """Send a signal, expect a clean end, and return the log."""
        process.send_signal(number)
        return self.ended(process)

    def ended(self, process: subprocess.Popen[bytes], seconds: float = PATIENCE_SECONDS) -> str:
        _, log = process.communicate(timeout=seconds)
        assert process.returncode == 0, log.decode()
        return log.decode()

    @property
    def status(self) -> Any:
        reading = self.reading
        return reading.status if reading is not None else None

    @property
    def reading(self) -> Reading | None:
        return read_status(self.paths)

    def is_in(self, state: str) -> bool:
        reading = self.reading
        return reading is not None and reading.is_running and reading.status.state == state

    def is_at_step(self, step: int) -> bool:
        return self.is_in("training") and (self.status.batch_step or 0) >= step

    def acknowledged(self, command: str) -> bool:
        control = self.status.control if self.status is not None else None
        return control is not None and control.command == command and control.applied_at is not None

    def command(self, command: str, reason: str = "") -> None:
        durable.write_bytes(self.paths.control(command), reason.encode())

    def let_go(self, step: int) -> None:
        """Let the newest job go on that its script holds before `step`."""
        let_go_file(self.paths.run(self.jobs()[-1].job_id), step).touch()

    def jobs(self) -> list[Job]:
        return JobStore(self.paths).all()

    def job(self) -> Job:
        (job,) = self.jobs()
        return job

    def events(self, job: Job) -> list[dict[str, Any]]:
        lines = self.paths.run(job.job_id).events.read_bytes().splitlines()
        return [json.loads(line) for line in lines]

    def steps(self, job: Job) -> list[int]:
        return [event["step"] for event in self.events(job) if event["event"] == "step"]

    def inputs_of_versions(self) -> list[str]:
        return [version.facts.input_name for version in VersionStore(self.paths).list()]

    def files(self, folder: str) -> set[str]:
        names = os.listdir(self.paths.inbox / folder)
        return {name for name in names if not name.endswith((".report.json", ".report.txt"))}

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess):
                words = [*self.worker.split(), str(self.paths.base)]
                if process.cmdline()[1 : 1 + len(words)] == words:
                    found.append(process)
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def close(self) -> None:
        """Kill every daemon that a failed test left, and see that no worker outlives it."""
        for process in self.started:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
        wait_until(lambda: self.workers() == [])
