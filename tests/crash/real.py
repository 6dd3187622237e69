"""Kill the real worker while it trains a tiny model: what comes out is the same, bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import durable
from tests.conftest import chats, make_tiny_model
from tests.crash.invariants import Violation
from tests.crash.kills import with_both
from tests.crash.life import SETTINGS, Drop, Life, new_world
from tests.crash.nursery import REAL
from tests.crash.points import Point
from tests.crash.startup import THREAD
from tests.crash.strike import Range, Say, Strike, carry_out, kill, open_range, record
from tests.crash.tally import Tally

PRELOAD = "training.run"
POINTS = 20
TRAINING = {
    "num_train_epochs": 2,
    "learning_rate": 1e-2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lora_dropout": 0.1,
    "lora_r": 4,
    "eval_steps": 2,
    "save_total_limit": 2,
    "threads": 1,
}
NOT_TRAINED = ("manifest.json", "README.md", "adapter_config.json", "evaluation.json")
"""Files of a version that bear a time of its making, or names in an order that no two processes share."""

RANDOM_NAME = "/.tmp"
"""Begins a name that safetensors draws; it cannot be met again."""


def run(say: Say, seed: int = 0) -> Tally:
    """Kill at twenty calls of the real daemon and worker."""
    tally = Tally()
    with new_world() as folder, open_range(PRELOAD) as range_:
        kill_some(range_, make_tiny_model(folder / "model"), POINTS, tally, say, seed)
    return tally


def kill_some(range_: Range, model: Path, count: int, tally: Tally, say: Say, seed: int = 0) -> None:
    """Kill `count` lives with the real worker; compare their versions with those of an undisturbed one."""
    begin = partial(begin_real_life, model=model)
    with range_.nursery() as nursery:
        with new_world() as folder:
            life = begin(folder)
            code = life.run(nursery)
            assert code == 0, life.said()
            expected = trained_files(life)
        points = with_both(record(nursery, begin=begin).points)
    say(f"real: {count} of {len(points)} points, {len(expected)} files to compare")
    chosen = choose(points, count, seed)
    inspect = partial(differences, expected=expected)
    strikes = [Strike(f"real {p}", partial(kill, points=(p,), begin=begin, inspect=inspect)) for p in chosen]
    hits = carry_out(range_, strikes, tally, say)
    assert hits >= len(strikes) - 1, f"only {hits} of {len(strikes)} traps caught anything"
    tally.kill_points += hits


def choose(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """Return some points of what is made under models/, most of them of the workers."""
    making = [
        point
        for point in points
        if point.path.startswith("models/") and point.process != THREAD and RANDOM_NAME not in point.path
    ]
    return random.Random(seed).sample(making, count)


def begin_real_life(folder: Path, model: Path) -> Life:
    """Begin a life of two files that the real worker trains on the tiny model."""
    settings: Mapping[str, Any] = {
        **SETTINGS,
        "model": {"base": str(model), "precision": "float32"},
        "train": TRAINING,
        "data": {"held_out_fraction": 0.2, "held_out_min_records": 8},
        "evaluation": {"sample_prompts": 0, "fixed_eval_prompts": 0, "suites": []},
    }
    drops = [_chat_drop("a.jsonl", 14, seed=1), _chat_drop("b.jsonl", 10, seed=2)]
    life = Life(folder / "world", drops, settings=settings, worker=REAL)
    life.begin()
    return life


def trained_files(life: Life) -> dict[str, str]:
    """Return the hashes of what was learned: adapters and optimizer moments of every version."""
    return {
        str(path.relative_to(life.paths.versions)): durable.sha256_file(path)
        for path in sorted(life.paths.versions.rglob("*"))
        if path.is_file() and path.name not in NOT_TRAINED
    }


def differences(life: Life, expected: Mapping[str, str]) -> list[Violation]:
    """Return every file that is not what an undisturbed life makes."""
    found = trained_files(life)
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    return [Violation("half", f"{name} differs from that of an undisturbed run") for name in names]


def _chat_drop(name: str, records: int, seed: int) -> Drop:
    lines = [json.dumps(record) + "\n" for record in chats(records, seed)]
    return Drop(name, "".join(lines).encode(), "done", held_out=None)
