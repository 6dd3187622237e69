"""Each condition raises its own alert at its limit, and its end resolves it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pytest

from monitoring.alert_rules import build_rules
from monitoring.observation import Observation, Thresholds
from monitoring.smart_alerts import SmartAlerts, Transition

GIB = 2**30


def told(alerts: SmartAlerts, observations: Iterable[Observation]) -> list[Transition]:
    return [change for one in observations for change in alerts.observe(one)]


def raised(changes: Iterable[Transition]) -> list[str]:
    return [change.alert.category for change in changes if change.kind == "raised"]


def resolved(changes: Iterable[Transition]) -> list[str]:
    return [change.alert.category for change in changes if change.kind == "resolved"]


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
        ("not_served", "warning", {"monitor_trouble": "port in use"}, {"monitor_trouble": ""}, {}),
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


def test_every_category_has_one_rule_and_advice() -> None:
    rules = build_rules(Thresholds())
    assert len({rule.category for rule in rules}) == len(rules) == 23
    assert all(rule.recommendation for rule in rules)


def test_another_limit_gives_another_answer() -> None:
    strict = SmartAlerts(Thresholds(disk_free_bytes=50 * GIB))
    seen = [Observation(disk_free_bytes=20 * GIB)]
    assert raised(told(strict, seen)) == ["low_disk"]
    assert told(SmartAlerts(), seen) == []
