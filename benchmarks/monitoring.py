"""What watching a run costs: the same run with the close looks on and off.

    python -m benchmarks.monitoring [--json] [--model FOLDER] [--rounds 6]

Both runs take turns of a few optimizer steps in one process, over the same records in the same order; each
begins every other round. The ratio is that of the medians of their seconds a token; a turn holds one sampled
step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.training import Contestant, Setting, prepare, take_turns, train_run


def measure(setting: Setting, rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the useful tokens a second of both runs, round by round."""
    watched = Contestant("watched", partial(train_run, setting), steps)
    unwatched = Contestant("unwatched", partial(train_run, setting, is_watched=False), steps)
    return take_turns([watched, unwatched], rounds)


def step_time_ratio(rates: dict[str, list[float]]) -> float:
    """Return how much longer a token takes in the watched run."""
    return round(statistics.median(rates["unwatched"]) / statistics.median(rates["watched"]), 4)


def main() -> None:
    """Measure and print; ``--json`` prints the figure on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--model", type=Path, help="a model folder; by default the embedded one")
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(options.model, Path(folder))
        rates = measure(setting, options.rounds, setting.config.monitoring.sample_steps)
    for name, values in rates.items():
        print(f"{name:10} {statistics.median(values):8.1f} tokens/s ({min(values):.1f} to {max(values):.1f})")
    print(f"step time, watched / unwatched  {step_time_ratio(rates):6.4f}   (at most 1.01)")
    if options.json:
        print(json.dumps({"step_time_ratio": step_time_ratio(rates)}))
    sys.stdout.flush()
    # The contestants' threads wait for a turn that will not come.
    os._exit(0)


if __name__ == "__main__":
    main()
