"""Run folders to keep a ledger from: made by hand, or by real daemons whose worker needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import durable
from config import Config, Paths, dump_config, load_config
from monitoring.events import Event, PlanEvent, StepEvent, encode_event
from tests.waiting import PATIENCE_SECONDS
from training.jobs import Job, JobStore, Source, make_job_id

ROOT = Path(__file__).parents[3]
STUB = ROOT / "tests" / "stub_worker.py"
LAUNCH = """
import sys, daemon
from pathlib import Path
base, stub, until_idle, *overrides = sys.argv[1:]
sys.exit(daemon.run(
    Path(base), overrides=overrides, until_idle=until_idle == "1",
    worker_command=(sys.executable, stub), retry_seconds=0.1,
))
"""
QUICK = ("inbox.settle_seconds=0.1", "inbox.poll_seconds=0.05", "monitoring.status_seconds=0.1")
MORNING = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class Folder:
    """A base folder."""

    def __init__(self, base: Path, url: str = "") -> None:
        self.paths = Paths(base)
        self.paths.create()
        self.store = JobStore(self.paths)
        self.url = url
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def config(self) -> Config:
        return load_config(self.paths.base, self._settings())

    def _settings(self) -> list[str]:
        return [f"ledger.url={self.url}"] if self.url else []

    def job(self, number: int = 1, *events: Event, **fields: object) -> Job:
        """Make a run folder with its configuration and its events."""
        sha256 = f"{number:064x}"[::-1]
        job = Job.model_validate(
            {
                "job_id": make_job_id(number, sha256),
                "number": number,
                "sha256": sha256,
                "size_bytes": 10,
                "name": f"{number}.jsonl",
                "place": f"{number}.jsonl",
                "suffix": ".jsonl",
                "source": Source(relative_path="x", device=1, inode=1, mtime_ns=1),
                "claimed_at": MORNING,
                **fields,
            }
        )
        run = self.paths.run(job.job_id)
        durable.make_folder(run.data)
        run.config_file.write_text(dump_config(Config()), encoding="utf-8")
        self.store.save(job)
        self.say(job, *events)
        return job

    def say(self, job: Job, *events: Event) -> None:
        """Append events to a run, as the daemon does."""
        for event in events:
            durable.append_line(self.paths.run(job.job_id).events, encode_event(event))

    def drop(self, name: str, tag: str = "", **script: object) -> None:
        path = self.paths.inbox / name
        path.write_text(json.dumps({"stub": script, "tag": tag or name}) + "\n", encoding="utf-8")

    def start(self, *overrides: str, until_idle: bool = False) -> subprocess.Popen[bytes]:
        """Start a real daemon whose worker is the stub."""
        settings = [*QUICK, *self._settings(), *overrides]
        process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(self.paths.base), str(STUB), str(int(until_idle)), *settings],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def run(self, *overrides: str) -> str:
        """Run a daemon until it is idle and return its log."""
        process = self.start(*overrides, until_idle=True)
        _, log = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == 0, log.decode()
        return log.decode()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def plan(total_steps: int = 10, start_step: int = 0, records: int = 80) -> PlanEvent:
    return PlanEvent(
        at=MORNING,
        records=records,
        epochs=2,
        steps_per_epoch=total_steps // 2,
        total_steps=total_steps,
        tokens_per_epoch=500,
        start_step=start_step,
        parent=None,
    )


def step(number: int, loss: float = 2.0, total_steps: int = 10) -> StepEvent:
    return StepEvent(
        at=MORNING + timedelta(seconds=number),
        step=number,
        total_steps=total_steps,
        epoch=2 * number / total_steps,
        loss=loss,
        learning_rate=1e-3 / number,
        grad_norm=0.5,
        tokens=100,
        seconds=0.25,
    )


def steps(numbers: Sequence[int]) -> list[StepEvent]:
    return [step(number, 1 / number) for number in numbers]
