"""What a checkpoint costs beside Trainer's own, and how soon a pause frees the machine.

    python -m benchmarks.checkpoint [--json] [--model FOLDER] [--rounds 8]

A checkpoint of ours is checked for nonsense, written, hashed, synced to the disk and sealed, and older ones
are rotated away; Trainer's own is written and rotated. Both save the same trainer, taking turns; the ratio
is the median over the rounds. The pause is one of a real daemon in the middle of a run: from touching
.pause until the worker process is gone, beside the longest step of that run and one checkpoint, which it
may take.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import psutil
from rich.console import Console
from rich.table import Table
from transformers import Trainer, TrainerCallback

from benchmarks.cold_start import begun_run, drop, events_of, wait_for
from benchmarks.training import prepare
from config import Paths, RunPaths, TrainConfig
from examples.make_tickets import TRAIN_FILE
from monitoring.events import EventWriter, StepEvent
from training.callbacks import RunCallback
from training.daemon_link import DaemonLink
from training.model import load_learner
from training.trainer import PlannedTrainer, build_trainer

ROOT = Path(__file__).resolve().parent.parent
STEPS_BEFORE_PAUSE = 2
KEPT_CHECKPOINTS = TrainConfig().save_total_limit


@dataclass(frozen=True)
class Saving:
    """Seconds of each round, ours and Trainer's in turns."""

    ours: list[float]
    trainers: list[float]

    @property
    def ratio(self) -> float:
        return statistics.median(ours / theirs for ours, theirs in zip(self.ours, self.trainers, strict=True))


@dataclass(frozen=True)
class Pause:
    """Seconds from the wish to the end of the worker, and of the longest step before."""

    seconds: float
    longest_step: float


class SaveRepeatedly(TrainerCallback):  # type: ignore[misc]
    """Saves in both ways at the end of the first step, as often as asked, then ends the run."""

    def __init__(self, trainer: PlannedTrainer, callback: RunCallback, rounds: int) -> None:
        self._trainer = trainer
        self._callback = callback
        self._rounds = rounds
        self.saving = Saving([], [])

    def on_step_end(self, args: object, state: object, control: object, **_: object) -> None:
        trainer = self._trainer
        for number in range(self._rounds + 1):
            trainer.state.global_step = 2 * number + 1
            began = time.perf_counter()
            trainer._save_checkpoint(trainer.model, None)
            self._callback.on_save(trainer.args, trainer.state, trainer.control)
            saved = time.perf_counter()
            trainer.state.global_step = 2 * number + 2
            trainers_own_checkpoint(trainer)
            if number:  # The first round allocates what the others reuse.
                self.saving.ours.append(saved - began)
                self.saving.trainers.append(time.perf_counter() - saved)
        trainer.control.should_training_stop = True


def trainers_own_checkpoint(trainer: PlannedTrainer) -> None:
    """Save and rotate as transformers does, in a folder of its own."""
    args = trainer.args
    folder = args.output_dir
    args.output_dir, args.save_total_limit = str(Path(folder) / "trainers-own"), KEPT_CHECKPOINTS
    with mock.patch.object(PlannedTrainer, "_save", Trainer._save):
        Trainer._save_checkpoint(trainer, trainer.model, None)
    args.output_dir, args.save_total_limit = folder, None


def measure_saving(model: Path | None, rounds: int, folder: Path) -> Saving:
    """Save the trainer of a real run in both ways."""
    setting = prepare(model, folder)
    learner = load_learner(setting.base, setting.config, None)
    with open(os.devnull, "wb", buffering=0) as nowhere:
        link = DaemonLink(EventWriter(nowhere.fileno()))
        callback = RunCallback(RunPaths(folder), setting.config, learner.precision, link)
        trainer = build_trainer(learner, folder, setting.config, "chat", [callback])
        trainer.setup(setting.config, setting.rows, None, setting.pad_token_id)
        callback.attach(trainer, None)
        saver = SaveRepeatedly(trainer, callback, rounds)
        trainer.add_callback(saver)
        trainer.train()
    return saver.saving


def measure_pause(base_model: Path, *overrides: str) -> Pause:
    """Pause a real daemon in the middle of a run."""
    with tempfile.TemporaryDirectory(prefix="trainbox-pause-") as folder:
        paths = Paths(Path(folder))
        paths.create()
        settings = [f"model.base={base_model.resolve()}", "train.eval_steps=1000000", *overrides]
        command = [sys.executable, str(ROOT / "daemon.py"), "--base", folder]
        command += [word for setting in settings for word in ("--set", setting)]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            drop(TRAIN_FILE, paths)
            run = wait_for(daemon, paths, lambda: begun_run(paths))
            steps = wait_for(daemon, paths, lambda: _steps(run))
            (worker,) = psutil.Process(daemon.pid).children()
            paths.control("pause").touch()
            asked_at = time.monotonic()
            psutil.wait_procs([worker])
            seconds = time.monotonic() - asked_at
            steps = _steps(run) or steps
        finally:
            daemon.terminate()
            daemon.wait()
    return Pause(seconds, max(step.seconds for step in steps))


def _steps(run: RunPaths) -> list[StepEvent] | None:
    """Return the steps so far once there are enough of them."""
    steps = [event for event in events_of(run) if isinstance(event, StepEvent)]
    return steps if len(steps) >= STEPS_BEFORE_PAUSE else None


def to_table(saving: Saving, pause: Pause) -> Table:
    """Show both to a person."""
    table = Table("", "seconds", "lowest", "highest", title="Checkpoint and pause")
    for name, values in (("sealed checkpoint", saving.ours), ("Trainer's own", saving.trainers)):
        numbers = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{number:.3f}" for number in numbers))
    table.add_row("pause → worker gone", f"{pause.seconds:.3f}")
    table.add_row("longest step", f"{pause.longest_step:.3f}")
    table.add_row("ratio (at most 1.3)", f"{saving.ratio:.3f}")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; ``--json`` prints the figures on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description="Time checkpoints.")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--model", type=Path, help="a model folder; by default the embedded one")
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        setting_folder = Path(folder)
        saving = measure_saving(options.model, options.rounds, setting_folder)
        base = options.model or prepare(None, setting_folder).base
    pause = measure_pause(base)
    Console(highlight=False).print(to_table(saving, pause))
    if options.json:
        figures = {
            "vs_trainer": saving.ratio,
            "pause_seconds": pause.seconds,
            "longest_step_seconds": pause.longest_step,
            "checkpoint_seconds": statistics.median(saving.ours),
        }
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
