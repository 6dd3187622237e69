"""A worker whose steps are real and always the same: forward, backward and update of a small network.

The real worker around a run that is told to stop, and then writes down when each step began, when it was
done, and when the daemon had been told of it. It keeps one processor to itself, as a run on a GPU machine
does: ``python -m benchmarks.busy_worker PROCESSOR BASE_FOLDER EVENTS_FD DAEMON_PID``.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

import orjson
import torch
from torch import nn

import durable
from benchmarks.long_run import signals
from config import Paths
from monitoring.events import OutcomeEvent, PhaseEvent, PlanEvent, StepEvent
from training import worker
from training.daemon_link import DaemonLink
from training.jobs import Job

WIDTH, DEPTH, ROWS = 640, 4, 128
"""A step takes 10 to 20 ms, so that the daemon has as much to do as it ever gets from a small model."""
STEPS = 10_000_000
"""More than anybody waits for."""
JOURNAL = "steps.json"


class Step(NamedTuple):
    """Moments of one step, in seconds of the monotonic clock, which all processes share."""

    began_at: float
    done_at: float
    told_at: float


class BusyRun:
    """Steps until the daemon says to stop."""

    def __init__(self, paths: Paths, job: Job, link: DaemonLink) -> None:
        self._journal = paths.run(job.job_id).folder / JOURNAL
        self._link = link
        torch.manual_seed(0)
        self._model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)))
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._rows = torch.randn(ROWS, WIDTH)

    def carry_out(self) -> OutcomeEvent:
        steps: list[Step] = []
        self._link.emit(
            PlanEvent(records=ROWS, epochs=1, steps_per_epoch=STEPS, total_steps=STEPS, tokens_per_epoch=ROWS)
        )
        self._link.emit(PhaseEvent(phase="training"))
        self._link.emit(signals(0, random.Random(0)))  # most of what a status document is long of
        while self._link.command is None:
            began_at = time.monotonic()
            loss = self._step()
            done_at = time.monotonic()
            self._tell(len(steps) + 1, loss, done_at - began_at)
            steps.append(Step(began_at, done_at, time.monotonic()))
        durable.write_json(self._journal, [list(step) for step in steps])
        return OutcomeEvent(outcome="stopped", step=len(steps))

    def _step(self) -> float:
        self._optimizer.zero_grad()
        loss = (self._model(self._rows) - self._rows).square().mean()
        loss.backward()
        self._optimizer.step()
        return float(loss.item())

    def _tell(self, step: int, loss: float, seconds: float) -> None:
        self._link.emit(
            StepEvent(
                step=step,
                total_steps=STEPS,
                epoch=step / STEPS,
                loss=loss,
                learning_rate=1e-3,
                grad_norm=1.0,
                tokens=ROWS,
                seconds=seconds,
            )
        )


def read_journal(run: Path) -> list[Step]:
    """Return the steps of a run that has ended."""
    return [Step(*moments) for moments in orjson.loads((run / JOURNAL).read_bytes())]


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[1])})
    torch.set_num_threads(1)
    sys.exit(worker.main(sys.argv[2:], load=lambda: BusyRun))
