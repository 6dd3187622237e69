"""Every alert is true: healthy runs raise none above info, broken ones raise the right one, once."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.alert_rules import build_rules
from monitoring.lora_monitor import LoRAMonitor
from monitoring.observation import Observation, Thresholds
from monitoring.smart_alerts import SmartAlerts, Transition
from monitoring.streaming_metrics import StreamingMetrics

GIB = 2**30


def told(alerts: SmartAlerts, observations: Iterable[Observation]) -> list[Transition]:
    return [change for one in observations for change in alerts.observe(one)]


def raised(changes: Iterable[Transition]) -> list[str]:
    return [change.alert.category for change in changes if change.kind == "raised"]


def resolved(changes: Iterable[Transition]) -> list[str]:
    return [change.alert.category for change in changes if change.kind == "resolved"]


def losses(values: Iterable[float], first: int = 1) -> Iterator[Observation]:
    for step, loss in enumerate(values, first):
        yield Observation(step=step, loss=loss)


def noisy(level: float, count: int, noise: float = 0.05, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, noise)) for _ in range(count)]


# --- one alert a category, raised and resolved once


def test_an_alert_is_raised_once_and_resolved_once_however_long_it_lasts() -> None:
    alerts = SmartAlerts()
    hot = [Observation(step=step, gpu_temperature=90.0) for step in range(500)]
    cool = [Observation(step=step, gpu_temperature=60.0) for step in range(500)]
    changes = told(alerts, hot)
    assert [change.kind for change in changes] == ["raised"]
    assert len(alerts.active()) == 1
    assert [change.kind for change in told(alerts, cool)] == ["resolved"]
    assert alerts.active() == ()


def test_between_its_limits_an_alert_stays_what_it_was() -> None:
    alerts = SmartAlerts()
    between = [Observation(gpu_temperature=82.0)] * 10
    assert told(alerts, between) == []
    told(alerts, [Observation(gpu_temperature=90.0)] * 3)
    assert told(alerts, between) == []
    assert [alert.category for alert in alerts.active()] == ["thermal"]


def test_what_was_not_looked_at_is_not_judged() -> None:
    alerts = SmartAlerts()
    told(alerts, [Observation(disk_free_bytes=GIB)])
    assert told(alerts, [Observation(step=step) for step in range(100)]) == []
    assert [alert.category for alert in alerts.active()] == ["low_disk"]


def test_an_alert_says_what_was_seen_what_it_means_and_what_to_do() -> None:
    at = datetime(2025, 1, 1, tzinfo=UTC)
    times = iter(at + timedelta(minutes=minute) for minute in range(9))
    alerts = SmartAlerts(clock=lambda: next(times))
    changes = told(alerts, [Observation(step=7, ece=0.4), Observation(step=8, ece=0.1)])
    shown = changes[0].alert.model_dump()
    assert list(shown) == ["severity", "category", "message", "details", "recommendation", "timestamp"]
    assert (shown["severity"], shown["category"], shown["timestamp"]) == ("warning", "poor_calibration", at)
    assert shown["details"] == {"step": 7, "ece": 0.4, "limit": 0.3}
    assert "0.40 is above 0.3" in shown["message"] and "temperature" in shown["recommendation"]
    assert changes[1].at == at + timedelta(minutes=1)


def test_the_summary_counts_by_severity_and_the_gravest_come_first() -> None:
    alerts = SmartAlerts()
    told(
        alerts,
        [
            Observation(step=2000, learning_rate=1e-7),
            Observation(ece=0.9),
            Observation(disk_free_bytes=1),
            Observation(step=1, loss=math.nan),
        ],
    )
    assert alerts.summary() == {"critical": 1, "warning": 2, "info": 1}
    assert [alert.severity for alert in alerts.active()] == ["critical", "warning", "warning", "info"]


def test_an_alert_that_grows_graver_is_raised_again_and_resolved_once() -> None:
    alerts = SmartAlerts()
    names = tuple(f"layer.{number}" for number in range(4))
    seen = [Observation(dead_layers=names[:count], total_layers=4) for count in (1, 2, 3, 4, 1, 0, 0)]
    changes = [(change.kind, change.alert.severity) for change in told(alerts, seen)]
    assert changes == [("raised", "info"), ("raised", "warning"), ("resolved", "warning")]


def test_every_category_has_one_rule_and_advice() -> None:
    rules = build_rules(Thresholds())
    assert len({rule.category for rule in rules}) == len(rules) == 21
    assert all(rule.recommendation for rule in rules)


# --- each rule by its numbers


@pytest.mark.parametrize(
    ("category", "severity", "bad", "good", "besides"),
    [
        ("nan_loss", "critical", {"loss": math.nan}, {"loss": 1.0}, {}),
        ("nan_loss", "critical", {"loss": math.inf}, {"loss": 1.0}, {}),
        ("nan_loss", "critical", {"grad_norm": math.nan}, {"grad_norm": 1.0}, {"loss": 1.0}),
        ("nan_loss", "critical", {"eval_loss": math.nan}, {"eval_loss": 1.0}, {"loss": 1.0}),
        ("exploding_gradients", "critical", {"largest_grad_norm": 100.1}, {"largest_grad_norm": 50.0}, {}),
        ("vanishing_gradients", "warning", {"smallest_grad_norm": 9e-8}, {"smallest_grad_norm": 1e-6}, {}),
        ("gradient_imbalance", "info", {"gradient_imbalance": 1001.0}, {"gradient_imbalance": 500.0}, {}),
        ("dead_layers", "warning", {"dead_layers": ("a", "b")}, {"dead_layers": ()}, {"total_layers": 2}),
        ("high_learning_rate", "warning", {"learning_rate": 1.1e-2}, {"learning_rate": 1e-2}, {}),
        ("low_learning_rate", "info", {"learning_rate": 9e-7}, {"learning_rate": 1e-6}, {"step": 1001}),
        ("loss_variance", "info", {"loss_variance": 0.26}, {"loss_variance": 0.2}, {"streaming_ce": 1.0}),
        ("poor_calibration", "warning", {"ece": 0.31}, {"ece": 0.25}, {}),
        ("val_gap", "warning", {"eval_loss": 1.31}, {"eval_loss": 1.25}, {"train_loss": 1.0}),
        (
            *("throughput_drop", "warning", {"tokens_per_sec": 59.0}, {"tokens_per_sec": 75.0}),
            {"tokens_per_sec_baseline": 100.0},
        ),
        ("stale_worker", "warning", {"heartbeat_age_seconds": 61.0}, {"heartbeat_age_seconds": 2.0}, {}),
        ("low_disk", "warning", {"disk_free_bytes": 9 * GIB}, {"disk_free_bytes": 13 * GIB}, {}),
        ("low_memory", "warning", {"ram_percent": 86.0}, {"ram_percent": 80.0}, {}),
        ("thermal", "warning", {"gpu_temperature": 86.0}, {"gpu_temperature": 80.0}, {}),
        ("missing_metric", "warning", {"missing_metrics": ("ece",)}, {"missing_metrics": ()}, {}),
    ],
)
def test_each_condition_raises_its_own_alert_and_its_end_resolves_it(
    category: str, severity: str, bad: dict[str, Any], good: dict[str, Any], besides: dict[str, Any]
) -> None:
    alerts = SmartAlerts()
    wrong, right = Observation(**bad, **besides), Observation(**good, **besides)
    changes = told(alerts, [wrong] * 20)
    assert raised(changes) == [category]
    assert (changes[0].alert.severity, resolved(changes)) == (severity, [])
    assert resolved(told(alerts, [right] * 20)) == [category]
    assert told(SmartAlerts(), [right] * 20) == []


def test_the_learning_rate_may_be_low_in_the_first_thousand_steps() -> None:
    assert told(SmartAlerts(), [Observation(step=step, learning_rate=1e-8) for step in range(1001)]) == []


def test_the_modules_in_trouble_are_named() -> None:
    names = tuple(f"model.layers.{number}.{{q}}" for number in range(7))
    alert = told(SmartAlerts(), [Observation(largest_grad_norm=math.inf, exploding_layers=names)])[0].alert
    assert "model.layers.0.{q}, " in alert.message and "and 2 more" in alert.message
    assert alert.details["layers"] == list(names)


def test_evidence_that_is_no_number_never_reaches_json() -> None:
    alerts = SmartAlerts()
    told(alerts, [Observation(step=1, loss=math.nan, grad_norm=math.inf, largest_grad_norm=math.inf)])
    assert len(alerts.active()) == 2
    for alert in alerts.active():
        json.dumps(alert.model_dump(mode="json"), allow_nan=False)
    assert "loss is nan and gradient norm is inf" in alerts.active()[0].message


def test_another_limit_gives_another_answer() -> None:
    strict = SmartAlerts(Thresholds(disk_free_bytes=50 * GIB))
    seen = [Observation(disk_free_bytes=20 * GIB)]
    assert raised(told(strict, seen)) == ["low_disk"]
    assert told(SmartAlerts(), seen) == []


# --- losses against their own past


def test_a_jump_to_twice_the_median_is_a_spike_although_its_own_value_would_hide_it() -> None:
    alerts = SmartAlerts()
    changes = told(alerts, losses([1.0] * 10 + [2.1] + [1.0] * 10))
    assert [(change.kind, change.alert.category) for change in changes] == [
        ("raised", "loss_spike"),
        ("resolved", "loss_spike"),
    ]
    # In a mean of ten with itself the limit would be 2.22.
    assert changes[0].alert.details["median"] == pytest.approx(1.0)


def test_a_jump_to_less_than_twice_or_of_less_than_a_tenth_of_a_nat_is_none() -> None:
    assert told(SmartAlerts(), losses([1.0] * 40 + [1.9] + [1.0] * 9)) == []
    assert told(SmartAlerts(), losses([0.02] * 40 + [0.06] + [0.02] * 9)) == []


def test_five_hundred_looks_at_one_spike_are_one_alert() -> None:
    changes = told(SmartAlerts(), losses([1.0] * 20 + [3.0] * 500))
    assert raised(changes).count("loss_spike") == 1


def test_a_rising_loss_diverges_and_is_no_plateau() -> None:
    rising = [1.0 + 2.95 * step / 99 for step in range(100)]
    assert raised(told(SmartAlerts(), losses(rising))) == ["divergence"]


def test_a_loss_that_returns_resolves_its_divergence() -> None:
    series = noisy(1.0, 60) + noisy(3.0, 60, seed=1) + noisy(0.9, 80, seed=2)
    changes = [
        change for change in told(SmartAlerts(), losses(series)) if change.alert.category == "divergence"
    ]
    assert [change.kind for change in changes] == ["raised", "resolved"]


def test_a_flat_loss_is_a_plateau_and_grave_only_when_nothing_was_learned() -> None:
    stuck = told(SmartAlerts(), losses(noisy(2.0, 120, noise=0.01)))
    assert [(change.alert.category, change.alert.severity) for change in stuck] == [("plateau", "warning")]
    falling = [2.0 - step * 0.02 for step in range(50)]
    converged = told(SmartAlerts(), losses(falling + noisy(1.0, 120, noise=0.01)))
    assert [(change.alert.category, change.alert.severity) for change in converged] == [("plateau", "info")]


def test_a_warm_up_is_no_plateau() -> None:
    warm_up = [Observation(step=step, loss=2.0, learning_rate=step * 1e-7) for step in range(1, 300)]
    assert told(SmartAlerts(), warm_up) == []


def test_memory_that_keeps_growing_is_noticed_and_memory_that_settles_is_not() -> None:
    growing = [Observation(worker_rss_bytes=(3 * GIB + step * 2**23)) for step in range(400)]
    assert raised(told(SmartAlerts(), growing)) == ["ram_creep"]
    settled = [Observation(worker_rss_bytes=min(3 + step / 5, 8) * GIB) for step in range(400)]  # type: ignore[arg-type]
    assert told(SmartAlerts(), settled) == []


def test_memory_that_stops_growing_resolves_its_alert() -> None:
    sizes = [3 * GIB + min(step, 300) * 2**23 for step in range(500)]
    changes = told(SmartAlerts(), (Observation(worker_rss_bytes=size) for size in sizes))
    assert [change.kind for change in changes] == ["raised", "resolved"]


@given(st.lists(st.one_of(st.floats(), st.none()), max_size=120))
@settings(max_examples=40)
def test_any_series_of_losses_is_judged_without_breaking(series: list[float | None]) -> None:
    alerts = SmartAlerts()
    changes = told(alerts, (Observation(step=step, loss=loss) for step, loss in enumerate(series)))
    for category in {change.alert.category for change in changes}:
        kinds = [change.kind for change in changes if change.alert.category == category]
        assert kinds == ["raised", "resolved"] * (len(kinds) // 2) + ["raised"] * (len(kinds) % 2)
    json.dumps([alert.model_dump(mode="json") for alert in alerts.active()], allow_nan=False)


# --- whole runs


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
def train(tmp_path: Path, tiny_model: Path, make_chats: Any) -> Callable[..., list[Transition]]:
    """Train a tiny adapter for some steps, with all collectors on; return what the alerts said."""
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

    def run(learning_rate: float, steps: int, frozen: bool = False) -> list[Transition]:
        learner = load_learner(tiny_model, config, None)
        trainer = build_trainer(learner, tmp_path / "run", config, "chat", [])
        trainer.setup(config, rows, None, pad_token_id=3)
        weights = [weight for weight in learner.model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=learning_rate)
        monitor = LoRAMonitor(learner.model.named_parameters(), interval=1)
        metrics, alerts, changes = StreamingMetrics(), SmartAlerts(), list[Transition]()
        for step in range(1, steps + 1):
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
                    learning_rate=learning_rate,
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

    return run


def test_real_healthy_runs_raise_nothing_above_info(train: Callable[..., list[Transition]]) -> None:
    for learning_rate in (1e-2, 1e-3):
        changes = train(learning_rate, 70)
        assert [change.alert for change in changes if change.alert.severity != "info"] == []


def test_a_real_run_with_a_learning_rate_times_a_hundred_is_critical(
    train: Callable[..., list[Transition]],
) -> None:
    alarming = [change for change in train(1.0, 40) if change.alert.severity != "info"]
    assert raised(alarming) == ["high_learning_rate", "exploding_gradients"]


def test_a_real_adapter_without_gradients_is_dead(train: Callable[..., list[Transition]]) -> None:
    assert "dead_layers" in raised(train(1e-2, 12, frozen=True))
