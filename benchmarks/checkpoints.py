"""How fast a checkpoint is scored, and a run of many checkpoints listed.

python -m benchmarks.checkpoints [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from training import checkpoints
from training.checkpoint_scorer import CheckpointHistory, calculate_checkpoint_score
from training.checkpoints import CheckpointFacts

SCORED = {"eval_loss": 0.42, "train_loss": 0.38, "epochs_without_improvement": 0}
REPEATS = 10_000
LISTED = 1000
ROUNDS = 5


def score_microseconds() -> float:
    """Return the time of one score."""

    def score() -> None:
        for _ in range(REPEATS):
            calculate_checkpoint_score(SCORED)

    return _seconds(score) / REPEATS * 1e6


def list_seconds(run: Path, count: int = LISTED) -> float:
    """Return the time to list `count` sealed and scored checkpoints."""
    history = CheckpointHistory()
    for step in range(1, count + 1):
        folder = run / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        scored = history.add(step, 1 / step, 1 / step)
        facts = CheckpointFacts(
            *(), step=step, epoch=1.0, tokens=step, precision="float32", micro_batch=8,
            eval_loss=scored.eval_loss, train_loss=scored.train_loss, is_candidate=True,
        )  # fmt: skip
        checkpoints.seal(folder, facts, scored)
    return _seconds(lambda: checkpoints.describe(run, "score"))


def _seconds(work: Callable[[], object]) -> float:
    """Return the median of some rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        rounds.append(time.perf_counter() - began)
    return statistics.median(rounds)


def main() -> None:
    """Measure and print; ``--json`` prints the figures on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "score_microseconds": round(score_microseconds(), 2),
            "list_1000_seconds": round(list_seconds(Path(folder)), 4),
        }
    print(f"one score         {figures['score_microseconds']:8.2f} µs   (at most 50)")
    print(f"list of {LISTED}      {figures['list_1000_seconds']:8.4f} s    (at most 0.2)")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
