"""What two runs must agree on, bit for bit, for one to be as good as the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config import Paths, RunPaths
from durable import sha256_file
from training.versions import VersionStore

LOGGED = ("current_steps", "loss", "eval_loss", "lr", "epoch", "total_tokens")


def learned(paths: Paths, name: str) -> dict[str, Any]:
    """Return all that a version learned: the hashes of its adapter and moments, and what was logged."""
    version = VersionStore(paths).get(name)
    return {
        "adapter": sha256_file(version.folder / "adapter_model.safetensors"),
        "moments": sha256_file(version.folder / "training_state" / "optimizer.pt"),
        "losses": logged(paths.run(version.facts.job_id)),
        "facts": (version.facts.train_loss, version.facts.tokens, version.facts.best_checkpoint),
        "held_out": version.facts.held_out,
    }


def logged(run: RunPaths) -> list[tuple[Any, ...]]:
    """Return the lines of trainer_log.jsonl without what a clock measured."""
    return [tuple(line.get(key) for key in LOGGED) for line in _lines(run.trainer_log)]


def told(run: RunPaths) -> dict[int, set[tuple[float, ...]]]:
    """Return what the events say of each step; a step that was done again must have said the same."""
    steps: dict[int, set[tuple[float, ...]]] = {}
    for event in _lines(run.events):
        if event["event"] == "step":
            numbers = event["loss"], event["learning_rate"], event["grad_norm"], event["tokens"]
            steps.setdefault(event["step"], set()).add(numbers)
    return steps


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
