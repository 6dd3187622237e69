"""From a dropped file to the first optimizer step.

    python -m benchmarks.cold_start [--json] [--model FOLDER]

A real daemon idles on an empty base folder with the default configuration; then a file of 200 tickets is
dropped. The parts follow one another and add up to the total. They are told by the clock that the run's own
files bear: the private copy, job.json, and events.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import orjson
from rich.console import Console
from rich.table import Table

from config import ModelConfig, Paths, RunPaths
from errors import TrainboxError
from examples.make_tickets import TRAIN_FILE
from monitoring.events import Event, PhaseEvent, StepEvent, decode_event
from monitoring.training_status import read_status
from training.base_model import locate_base

ROOT = Path(__file__).resolve().parent.parent
LIMIT_SECONDS = 300.0
LOOK_SECONDS = 0.01

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class ColdStart:
    """Seconds of each part; every one begins where the one before it ended."""

    settle: float
    """Dropped → read to its end by the daemon: it has to stand still for inbox.settle_seconds."""
    claim: float
    """→ the job is a durable folder and given to a worker."""
    imports: float
    """→ the worker, which may still be importing, begins to validate."""
    validate: float
    """→ every record is checked and tokenised."""
    model: float
    """→ the model is loaded and the trainer built."""
    first_step: float
    """→ one optimizer step is done."""
    total: float

    @classmethod
    def of(cls, stamps: Sequence[float]) -> ColdStart:
        """Make it of seven moments, from the drop to the first step."""
        settle, claim, imports, validate, model, first_step = (
            after - before for before, after in pairwise(stamps)
        )
        return cls(settle, claim, imports, validate, model, first_step, total=stamps[-1] - stamps[0])


def measure(base_model: Path, *, preload: bool, overrides: Sequence[str] = ()) -> ColdStart:
    """Start a daemon, drop the example file once it is idle, and end it after the first step."""
    with tempfile.TemporaryDirectory(prefix="trainbox-cold-start-") as folder:
        paths = Paths(Path(folder))
        settings = [
            f"model.base={base_model.resolve()}",
            f"worker.preload={str(preload).lower()}",
            *overrides,
        ]
        command = [sys.executable, str(ROOT / "daemon.py"), "--base", folder]
        for setting in settings:
            command += ["--set", setting]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_for(daemon, paths, lambda: _is_idle(paths))
            dropped_at = drop(TRAIN_FILE, paths)
            run = wait_for(daemon, paths, lambda: begun_run(paths))
            given_at = run.job_file.stat().st_mtime
            events = wait_for(daemon, paths, lambda: _events_to_first_step(run))
            copied_at = run.input(".jsonl").stat().st_mtime
        finally:
            # The second signal asks it not to wait for a checkpoint.
            daemon.terminate()
            daemon.terminate()
            daemon.wait()
    return ColdStart.of([dropped_at, copied_at, given_at, *_moments(events)])


def wait_for(daemon: subprocess.Popen[bytes], paths: Paths, look: Callable[[], Thing | None]) -> Thing:
    """Return what `look` finds; raise RuntimeError when the daemon ends or nothing comes."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not (found := look()):
        if daemon.poll() is not None or time.monotonic() > deadline:
            log = paths.log_file.read_text(encoding="utf-8") if paths.log_file.exists() else "nothing"
            raise RuntimeError(f"nothing came within {LIMIT_SECONDS:.0f} s; the daemon said:\n{log[-2000:]}")
        time.sleep(LOOK_SECONDS)
    return found


def _is_idle(paths: Paths) -> bool:
    reading = read_status(paths)
    return reading is not None and reading.status.state == "idle"


def drop(file: Path, paths: Paths) -> float:
    """Move a copy into the inbox, so that it comes whole; return when."""
    outside = paths.base / file.name
    shutil.copyfile(file, outside)
    dropped_at = time.time()
    os.replace(outside, paths.inbox / file.name)
    return dropped_at


def begun_run(paths: Paths) -> RunPaths | None:
    """Return the run that a worker was given."""
    for folder in paths.runs.glob("0*"):
        run = RunPaths(folder)
        if orjson.loads(run.job_file.read_bytes())["state"] == "running":
            return run
    return None


def events_of(run: RunPaths) -> list[Event]:
    """Return what the worker of a run has said so far."""
    lines = run.events.read_bytes().split(b"\n")[:-1] if run.events.exists() else []
    return [decode_event(line) for line in lines]


def _events_to_first_step(run: RunPaths) -> list[Event] | None:
    """Return the events so far once an optimizer step is among them."""
    events = events_of(run)
    return events if any(isinstance(event, StepEvent) for event in events) else None


def _moments(events: Sequence[Event]) -> list[float]:
    """Return when validating, loading and training began and when the first step was done."""
    phases = [
        next(event for event in events if isinstance(event, PhaseEvent) and event.phase == phase)
        for phase in ("validating", "loading", "training")
    ]
    step = next(event for event in events if isinstance(event, StepEvent))
    return [event.at.timestamp() for event in (*phases, step)]


def to_table(preloaded: ColdStart, plain: ColdStart) -> Table:
    """Show both ways to a person."""
    table = Table("part", "worker.preload true", "false", title="Drop to first optimizer step, seconds")
    for part, seconds in asdict(preloaded).items():
        table.add_row(part, f"{seconds:.2f}", f"{asdict(plain)[part]:.2f}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Measure with and without the worker preloaded; ``--json`` prints the former, the default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start", description="Time a cold start.")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument(
        "--model", type=Path, help="a model folder; by default the embedded model of this folder"
    )
    options = parser.parse_args(arguments)
    try:
        base_model = options.model or locate_base(Paths(ROOT), ModelConfig())
    except TrainboxError as error:
        sys.stderr.write(f"{error}; or give --model FOLDER\n")
        return 2
    preloaded, plain = (measure(base_model, preload=preload) for preload in (True, False))
    Console(highlight=False).print(to_table(preloaded, plain))
    if options.json:
        print(json.dumps({part: round(s, 3) for part, s in asdict(preloaded).items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
