"""How fast runs with this model were on this machine, read from what they logged."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import yaml

from config import ModelConfig, Paths, RunPaths

TAIL_BYTES = 4096


def last_throughput(paths: Paths, config: ModelConfig) -> float | None:
    """Return the useful tokens a second of the newest run with this model; None when there was none."""
    for run in map(RunPaths, sorted(paths.runs.glob("*-*"), reverse=True)):
        if run.trainer_log.is_file() and run.config_file.is_file():
            model = yaml.safe_load(run.config_file.read_text(encoding="utf-8"))["model"]
            if model == config.model_dump(mode="json"):
                speed = _last_value(run.trainer_log)
                if speed is not None:
                    return speed
    return None


def training_seconds(run: RunPaths) -> float | None:
    """Return how long the steps of a run took, from its speed and its tokens; None when it was not timed."""
    if not run.trainer_log.is_file():
        return None
    speed, tokens = _last_value(run.trainer_log), _last_value(run.trainer_log, "total_tokens")
    return None if not speed or tokens is None else tokens / speed


def _last_value(log: Path, key: str = "throughput") -> float | None:
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            value = orjson.loads(line).get(key)
        except orjson.JSONDecodeError:
            continue  # the first one is cut by where we began to read, the last one perhaps by a crash
        if value is not None:
            return float(value)
    return None
