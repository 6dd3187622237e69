"""Alerts are true: healthy runs raise none above info, broken ones raise the right one, once."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from monitoring.lora_monitor import LoRAMonitor
from monitoring.observation import Observation
from monitoring.smart_alerts import SmartAlerts, Transition
from monitoring.streaming_metrics import StreamingMetrics

GIB = 2**30


def told(alerts: SmartAlerts, observations: Iterable[Observation]) -> list[Transition]:
    return [change for one in observations for change in alerts.observe(one)]


def raised(changes: Iterable[Transition]) -> list[str]:
    return [change.alert.category for change in changes if change.kind == "raised"]


def losses(values: Iterable[float], first: int = 1) -> Iterator[Observation]:
    for step, loss in enumerate(values, first):
        yield Observation(step=step, loss=loss)


def noisy(level: float, count: int, noise: float = 0.05, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, noise)) for _ in range(count)]


@dataclass(frozen=True)
class Run:
    """A run as its numbers tell it: a loss that falls towards a floor, a learning rate, noise."""

    steps: int
    start: float
    floor: float
    noise: float
    decay_steps: float
    seed: int
    schedule: str = "linear"

    def observations(self) -> Iterator[Observation]:
        draw, metrics = random.Random(self.seed), StreamingMetrics()
        warm_up, progress, window = max(1, self.steps // 30), 0.0, list[float]()
        for step in range(1, self.steps + 1):
            factor = min(1.0, step / warm_up)
            if self.schedule == "linear" and step > warm_up:
                factor = 1 - 0.9 * (step - warm_up) / (self.steps - warm_up)
            progress += factor
            level = self.floor + (self.start - self.floor) * math.exp(-progress / self.decay_steps)
            loss = level * math.exp(draw.gauss(0, self.noise))
            window.append(loss)
            metrics.observe(loss)
            seen = metrics.snapshot()
            yield Observation(
                step=step,
                loss=loss,
                learning_rate=2e-4 * factor,
                grad_norm=draw.lognormvariate(0, 0.5),
                streaming_ce=seen.streaming_ce,
                loss_variance=seen.loss_variance,
                largest_grad_norm=draw.lognormvariate(0, 0.5),
                smallest_grad_norm=draw.lognormvariate(-5, 0.5),
                gradient_imbalance=draw.lognormvariate(4, 0.5),
                dead_layers=(),
                total_layers=210,
                tokens_per_sec=draw.uniform(850, 1150),
                tokens_per_sec_baseline=1000,
                disk_free_bytes=80 * GIB,
                worker_rss_bytes=int(GIB * (4 + 2 * min(1.0, step / 50) + draw.uniform(0, 0.2))),
                gpu_temperature=draw.uniform(60, 80),
                missing_metrics=(),
                heartbeat_age_seconds=draw.uniform(0, 10),
            )
            if step % max(1, self.steps // 8) == 0:
                evaluated = 1.03 * level * math.exp(draw.gauss(0, 0.005))
                yield Observation(step=step, eval_loss=evaluated, train_loss=sum(window) / len(window))
                window.clear()


HEALTHY = [
    Run(40, 2.5, 1.2, 0.1, 10, 1),
    Run(120, 3.5, 1.0, 0.15, 30, 2),
    Run(300, 2.2, 1.3, 0.1, 60, 3),
    Run(600, 2.0, 0.9, 0.2, 150, 4),
    Run(1500, 2.8, 1.1, 0.1, 300, 5, "constant"),
    Run(800, 1.4, 0.7, 0.3, 200, 6, "constant"),
    Run(500, 0.03, 0.015, 0.3, 100, 7),
    Run(400, 4.0, 0.02, 0.2, 40, 8),
    Run(250, 1.2, 0.9, 0.05, 80, 9, "constant"),
    Run(1000, 6.0, 2.0, 0.05, 250, 10),
]


@pytest.mark.parametrize("run", HEALTHY, ids=lambda run: f"{run.steps} steps")
def test_a_healthy_run_raises_nothing_above_info(run: Run) -> None:
    changes = told(SmartAlerts(), run.observations())
    assert [change.alert for change in changes if change.alert.severity != "info"] == []


def from_step(step: int, change: Callable[[Observation], Observation]) -> Iterator[Observation]:
    """Yield a healthy run of 300 steps that is changed from `step` on."""
    for one in Run(300, 2.5, 1.2, 0.1, 70, 11).observations():
        yield change(one) if one.step is not None and one.step >= step else one


def scale_loss(factor: float) -> Callable[[Observation], Observation]:
    return lambda one: one if one.loss is None else replace(one, loss=one.loss * factor)


def memorised() -> Iterator[Observation]:
    """Yield the evaluations of a tiny file that is trained for many epochs."""
    for epoch in range(1, 11):
        trained = 2.5 * 0.6**epoch
        evaluated = 2.2 - 0.25 * epoch if epoch < 4 else 1.2 + 0.1 * epoch
        yield Observation(step=10 * epoch, eval_loss=evaluated, train_loss=trained)


def diverging() -> list[float]:
    """Make the losses of a learning rate a hundred times too high: up at once, and it stays there."""
    draw = random.Random(12)
    return [min(2.5 * 1.25**step, 9.0) * math.exp(draw.gauss(0, 0.15)) for step in range(80)]


BROKEN: dict[str, tuple[Callable[[], Iterable[Observation]], set[str]]] = {
    "a learning rate times a hundred": (lambda: losses(diverging()), {"divergence"}),
    "a batch that is not a number": (lambda: from_step(150, scale_loss(math.nan)), {"nan_loss"}),
    "one bad batch": (
        lambda: (scale_loss(5.0)(one) if one.step == 150 else one for one in from_step(301, scale_loss(1))),
        {"loss_spike"},
    ),
    "late divergence": (lambda: from_step(200, scale_loss(4.0)), {"divergence", "loss_spike"}),
    "a frozen adapter": (
        lambda: from_step(20, lambda one: replace(one, dead_layers=("a",) * 210, largest_grad_norm=None)),
        {"dead_layers"},
    ),
    "shuffled labels": (lambda: losses(noisy(5.3, 300, noise=0.02)), {"plateau"}),
    "a tiny file learned by heart": (memorised, {"overfitting", "val_gap"}),
    "gradients that explode": (
        lambda: from_step(100, lambda one: replace(one, largest_grad_norm=450.0)),
        {"exploding_gradients"},
    ),
    "gradients that vanish": (
        lambda: from_step(100, lambda one: replace(one, smallest_grad_norm=1e-9)),
        {"vanishing_gradients"},
    ),
    "a machine that slows down": (
        lambda: from_step(150, lambda one: replace(one, tokens_per_sec=400.0)),
        {"throughput_drop"},
    ),
    "memory that leaks": (
        lambda: from_step(1, lambda one: replace(one, worker_rss_bytes=4 * GIB + (one.step or 0) * 2**24)),
        {"ram_creep"},
    ),
    "a silent worker": (
        lambda: from_step(250, lambda one: replace(one, heartbeat_age_seconds=120.0)),
        {"stale_worker"},
    ),
    "evaluations that never come": (
        lambda: from_step(50, lambda one: replace(one, missing_metrics=("validation_loss",))),
        {"missing_metric"},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_raises_the_right_alert_once(name: str) -> None:
    observations, expected = BROKEN[name]
    changes = told(SmartAlerts(), observations())
    alarming = [change for change in changes if change.alert.severity != "info"]
    assert set(raised(alarming)) == expected
    assert len(raised(alarming)) == len(expected)


# --- real runs of the tiny model


@pytest.fixture
def train(tmp_path: Path, tiny_model: Path, make_chats: Any) -> Iterator[Callable[..., list[Transition]]]:
    """Train a tiny adapter, one step for each learning rate; return what the alerts said."""
    from chat_template import ChatTemplate
    from config import load_config
    from training.dataset import tokenise_run
    from training.model import load_learner
    from training.trainer import build_trainer

    source = tmp_path / "records.jsonl"
    records = ({"line": line, **record} for line, record in enumerate(make_chats(48), 1))
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = load_config(tmp_path, ["model.precision=float32", "train.threads=1"])
    template = ChatTemplate.load(tiny_model)
    rows = tokenise_run(
        *(tmp_path / "tokens", {"train": source}, template, "key", config.data), on_progress=lambda _: None
    )["train"]

    def run(rates: list[float], *, frozen: bool = False) -> list[Transition]:
        learner = load_learner(tiny_model, config, None)
        trainer = build_trainer(learner, tmp_path / "run", config, "chat", [])
        trainer.setup(config, rows, None, pad_token_id=3)
        weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights)
        monitor = LoRAMonitor(learner.model.named_parameters(), interval=1)
        metrics, alerts, changes = StreamingMetrics(), SmartAlerts(), list[Transition]()
        for step, rate in enumerate(rates, 1):
            optimizer.param_groups[0]["lr"] = rate
            batch = [rows.dataset[number % 48] for number in range(8 * step, 8 * step + 8)]
            loss = float(trainer.training_step(learner.model, batch))
            if frozen:
                optimizer.zero_grad()
            monitor.before_step(step)
            optimizer.step()
            optimizer.zero_grad()
            monitor.after_step()
            metrics.observe(loss)
            seen, summary = metrics.snapshot(), monitor.lora_summary
            assert summary is not None
            changes += alerts.observe(
                Observation(
                    step=step,
                    loss=loss,
                    learning_rate=rate,
                    streaming_ce=seen.streaming_ce,
                    loss_variance=seen.loss_variance,
                    largest_grad_norm=summary.largest_grad_norm,
                    smallest_grad_norm=summary.smallest_grad_norm,
                    gradient_imbalance=summary.gradient_imbalance,
                    dead_layers=summary.dead_layers,
                    total_layers=summary.total_layers,
                )
            )
        return changes

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("rate", [1e-2, 1e-3])
def test_a_real_healthy_run_raises_nothing_above_info(
    rate: float, train: Callable[..., list[Transition]]
) -> None:
    assert [change.alert for change in train([rate] * 60) if change.alert.severity != "info"] == []


def test_a_real_run_diverges_when_its_learning_rate_is_a_hundred_times_too_high(
    train: Callable[..., list[Transition]],
) -> None:
    changes = train([1e-2] * 30 + [1.0] * 30)
    assert {"high_learning_rate", "divergence"} <= set(raised(changes))
    assert "plateau" not in raised(changes)


def test_a_real_adapter_without_gradients_is_dead(train: Callable[..., list[Transition]]) -> None:
    changes = [change for change in train([1e-3] * 12, frozen=True) if change.alert.severity != "info"]
    assert raised(changes) == ["dead_layers"]
