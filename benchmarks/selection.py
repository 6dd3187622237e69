"""Which rule picks the better checkpoint: lowest evaluation loss, the published score, or the robust one.

    python -m benchmarks.selection [--json] [--steps 360] [--evaluations 12]

Small transformers learn invented tables from few or many records, at low and high learning rates, with
right and with noisy answers. Each run is evaluated on held-out records, as a job is, and at the same steps
on a third set that no rule sees. The regret of a rule is how much worse, in nats a token on that third
set, the checkpoint it picked is than the best one of the run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch.nn import functional

from benchmarks.shapes import Shape, random_model
from training.checkpoint_scorer import CheckpointHistory, Selection, choose_best

MODEL = Shape("probe", 2, 32, 64, 4, 2, 8, 64, is_tied=True)
SYMBOLS = 16
QUESTION, ANSWER = 4, 3
"""Tokens of a question and of its answer."""
BATCH = 16
HELD_OUT, TEST = 100, 1000
SIZES = (64, 256, 1024)
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
NOISES = (0.0, 0.15, 0.3)
"""Shares of answer tokens that are drawn at random, in all three sets alike."""


@dataclass(frozen=True)
class Setting:
    """What one run trains on."""

    records: int
    learning_rate: float
    noise: float
    seed: int


@dataclass(frozen=True)
class Result:
    """One run: its evaluations and what they were worth."""

    setting: Setting
    history: CheckpointHistory
    test_losses: dict[int, float]
    """By step, in nats a token on the set that no rule sees."""

    def regret(self, rule: Selection) -> float:
        """Return how much worse the pick of `rule` is than the best checkpoint."""
        picked = choose_best(self.history.scored, rule)
        assert picked is not None
        return self.test_losses[picked.step] - min(self.test_losses.values())


class Task:
    """Questions of four symbols; one answer hangs on two of them, the others on one each."""

    def __init__(self, setting: Setting) -> None:
        self._draw = torch.Generator().manual_seed(setting.seed)
        self._noise = setting.noise
        self._pairs = self._random(SYMBOLS, SYMBOLS)
        self._singles = self._random(2, SYMBOLS)

    def records(self, count: int) -> torch.Tensor:
        """Return new records, shape ``(count, 7)``: the question's tokens and the answer's."""
        question = self._random(count, QUESTION)
        first, second, third, fourth = question.unbind(1)
        right = torch.stack(
            [self._pairs[first, second], self._singles[0][third], self._singles[1][fourth]], dim=1
        )
        is_noisy = torch.rand(right.shape, generator=self._draw) < self._noise
        answer = torch.where(is_noisy, self._random(count, ANSWER), right)
        return torch.cat([question, answer + SYMBOLS], dim=1)

    def batch(self, records: torch.Tensor) -> torch.Tensor:
        """Return some of the records, drawn at random."""
        return records[torch.randint(len(records), (BATCH,), generator=self._draw)]

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randint(SYMBOLS, shape, generator=self._draw)


def record_losses(model: Any, records: torch.Tensor) -> torch.Tensor:
    """Return the loss of each record in nats a token of its answer, shape ``(N,)``."""
    logits = model(input_ids=records, use_cache=False).logits[:, QUESTION - 1 : -1].float()
    each = functional.cross_entropy(logits.flatten(0, 1), records[:, QUESTION:].flatten(), reduction="none")
    return each.view(len(records), ANSWER).mean(1)


def train(setting: Setting, steps: int, evaluations: int) -> Result:
    """Train one model and score it at evenly spaced steps."""
    task = Task(setting)
    known, held_out, test = (task.records(count) for count in (setting.records, HELD_OUT, TEST))
    model = random_model(MODEL, torch.device("cpu"), torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=0.0)
    history, test_losses, window = CheckpointHistory(), dict[int, float](), list[float]()
    interval = max(1, steps // evaluations)
    for step in range(1, steps + 1):
        loss = record_losses(model, task.batch(known)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        window.append(loss.item())
        if step % interval == 0:
            with torch.no_grad():
                evaluated, tested = record_losses(model, held_out), record_losses(model, test)
            error = evaluated.std().item() / math.sqrt(HELD_OUT)
            history.add(step, evaluated.mean().item(), statistics.fmean(window), eval_standard_error=error)
            test_losses[step] = tested.mean().item()
            window.clear()
    return Result(setting, history, test_losses)


def settings() -> list[Setting]:
    """Return the settings of all runs, each with tables of its own."""
    combinations = itertools.product(SIZES, LEARNING_RATES, NOISES)
    return [Setting(*combination, seed) for seed, combination in enumerate(combinations, 1)]


def mean_regret(results: Sequence[Result], rule: Selection) -> float:
    """Return the mean regret of a rule in nats a token."""
    return round(statistics.fmean(result.regret(rule) for result in results), 4)


def show(results: Sequence[Result]) -> None:
    """Print what each rule costs, over all runs and over each kind of them."""
    rules = get_args(Selection)
    print(f"{'runs':24} {'count':>5} " + " ".join(f"{rule:>10}" for rule in rules))
    groups: list[tuple[str, list[Result]]] = [("all", list(results))]
    for name, values in (("records", SIZES), ("learning_rate", LEARNING_RATES), ("noise", NOISES)):
        for value in values:
            chosen = [result for result in results if getattr(result.setting, name) == value]
            groups.append((f"{name} {value:g}", chosen))
    for name, group in groups:
        if group:
            regrets = " ".join(f"{mean_regret(group, rule):10.4f}" for rule in rules)
            print(f"{name:24} {len(group):5} {regrets}")


def main() -> None:
    """Train all runs, print a table, and with --json the mean regrets on the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--steps", type=int, default=360, help="optimizer steps in a run")
    parser.add_argument("--evaluations", type=int, default=12, help="evaluations in a run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [train(setting, options.steps, options.evaluations) for setting in settings()]
    show(results)
    if options.json:
        regrets = {f"regret_{rule}": mean_regret(results, rule) for rule in get_args(Selection)}
        print(json.dumps({**regrets, "runs": len(results)}))


if __name__ == "__main__":
    main()
