"""The curves of a run, from its events.jsonl; what was read once is not read again while the file grows."""

from __future__ import annotations

import math
import os
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

from config import Paths
from monitoring.streaming_metrics import EMA_ALPHA
from serving.documents import EvaluationColumns, StepColumns
from serving.thinning import keep_extremes

KEPT_RUNS = 2
"""Runs whose curves stay in memory: 5 MB for 100,000 steps."""
SHOWN_DIGITS = 7
_UNKNOWN = math.nan
_WANTED = (b'"event":"step"', b'"event":"evaluated"', b'"event":"fixed_eval"', b'"event":"plan"')


class GrowingFile:
    """A file of lines that is only ever appended to, read from where the last reading ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int | None = None
        self._offset = 0

    def new_lines(self, on_replaced: Callable[[], None]) -> Iterator[bytes]:
        """Yield the whole lines not yet read; `on_replaced` is called first when it is another file now."""
        try:
            file = open(self._path, "rb")  # noqa: SIM115 - closed below; a missing file is no error
        except FileNotFoundError:
            return
        with file:
            facts = os.fstat(file.fileno())  # of what was opened: the path may be another file's by now
            if facts.st_ino != self._inode or facts.st_size < self._offset:
                if self._inode is not None:
                    on_replaced()
                self._inode, self._offset = facts.st_ino, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # half of a line: the rest may come
                self._offset += len(line)
                yield line


class RunCurves:
    """The numbers of one run by step; a run that goes back to a checkpoint forgets what came after it."""

    def __init__(self, events: Path) -> None:
        self._file = GrowingFile(events)
        self._lock = threading.Lock()
        self._forget()

    def columns(self, max_points: int) -> tuple[int, StepColumns, EvaluationColumns]:
        """Return the number of steps known and the columns, each with at most `max_points` rows."""
        with self._lock:
            for line in self._file.new_lines(self._forget):
                self._take(line)
            return len(self._steps), self._step_columns(max_points), self._evaluation_columns(max_points)

    def _forget(self) -> None:
        self._steps = array("q")
        self._loss, self._ema, self._learning_rate = array("d"), array("d"), array("d")
        self._grad_norm, self._tokens_per_sec = array("d"), array("d")
        self._evaluations: dict[int, dict[str, Any]] = {}
        self._fixed_evals: dict[int, dict[str, Any]] = {}

    def _take(self, line: bytes) -> None:
        if not any(name in line for name in _WANTED):
            return
        try:
            event = orjson.loads(line)
            match event["event"]:
                case "step":
                    self._take_step(event)
                case "evaluated":
                    self._evaluations[event["step"]] = event
                case "fixed_eval":
                    self._fixed_evals[event["step"]] = event
                case "plan":
                    self._go_back(event["start_step"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return  # torn or damaged; the daemon says so in its log, and a curve has a gap

    def _take_step(self, event: dict[str, Any]) -> None:
        step, loss, seconds = event["step"], _number(event["loss"]), _number(event["seconds"])
        learning_rate, grad_norm = _number(event["learning_rate"]), _number(event["grad_norm"])
        speed = event["tokens"] / seconds if seconds > 0 else _UNKNOWN
        if self._steps and step <= self._steps[-1]:
            self._go_back(step - 1)
        before = self._ema[-1] if self._ema else _UNKNOWN
        ema = loss if math.isnan(before) else before if math.isnan(loss) else _mixed(before, loss)
        self._steps.append(step)
        for column, value in (
            (self._loss, loss),
            (self._ema, ema),
            (self._learning_rate, learning_rate),
            (self._grad_norm, grad_norm),
            (self._tokens_per_sec, speed),
        ):
            column.append(value)

    def _go_back(self, step: int) -> None:
        """Forget what was done after `step`: it is done again."""
        row = bisect_right(self._steps, step)
        for column in (self._loss, self._ema, self._learning_rate, self._grad_norm, self._tokens_per_sec):
            del column[row:]
        del self._steps[row:]
        for known in (self._evaluations, self._fixed_evals):
            for later in [number for number in known if number > step]:
                del known[later]

    def _step_columns(self, max_points: int) -> StepColumns:
        rows = keep_extremes(
            [(self._loss, 0.5), (self._grad_norm, 0.25), (self._tokens_per_sec, 0.25)], max_points
        )
        return StepColumns(
            step=[self._steps[row] for row in rows],
            loss=_shown(self._loss, rows),
            ema_loss=_shown(self._ema, rows),
            learning_rate=_shown(self._learning_rate, rows),
            grad_norm=_shown(self._grad_norm, rows),
            tokens_per_sec=_shown(self._tokens_per_sec, rows),
        )

    def _evaluation_columns(self, max_points: int) -> EvaluationColumns:
        steps = sorted({*self._evaluations, *self._fixed_evals})
        columns = {
            name: [_number(self._evaluations.get(step, {}).get(name)) for step in steps]
            for name in ("eval_loss", "train_loss", "score")
        }
        for name in ("em", "ce"):
            columns[f"fixed_eval_{name}"] = [
                _number(self._fixed_evals.get(step, {}).get(name)) for step in steps
            ]
        shares = [(columns[name], 1 / 3) for name in ("eval_loss", "score", "fixed_eval_em")]
        rows = keep_extremes(shares, max_points)
        return EvaluationColumns(
            step=[steps[row] for row in rows],
            **{name: _shown(values, rows) for name, values in columns.items()},
        )


class CurvesOfRuns:
    """The curves of the runs that were asked for last."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, RunCurves] = OrderedDict()

    def of(self, job_id: str) -> RunCurves:
        with self._lock:
            curves = self._kept.pop(job_id, None) or RunCurves(self._paths.run(job_id).events)
            self._kept[job_id] = curves
            while len(self._kept) > KEPT_RUNS:
                self._kept.popitem(last=False)
            return curves


def _number(value: object) -> float:
    """Return a number, not-a-number for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else _UNKNOWN


def _mixed(average: float, value: float) -> float:
    return (1 - EMA_ALPHA) * average + EMA_ALPHA * value


def _shown(values: Any, rows: list[int]) -> list[float | None]:
    """Return the values of some rows with as many digits as a chart shows; null where there is none."""
    return [None if math.isnan(values[row]) else float(f"{values[row]:.{SHOWN_DIGITS}g}") for row in rows]
