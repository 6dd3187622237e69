"""One alert a category: raised once, resolved once, with evidence that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.observation import Observation
from monitoring.smart_alerts import SmartAlerts, Transition

GIB = 2**30


def told(alerts: SmartAlerts, observations: Iterable[Observation]) -> list[Transition]:
    return [change for one in observations for change in alerts.observe(one)]


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


def test_evidence_that_is_no_number_never_reaches_json() -> None:
    alerts = SmartAlerts()
    told(alerts, [Observation(step=1, loss=math.nan, grad_norm=math.inf, largest_grad_norm=math.inf)])
    assert len(alerts.active()) == 2
    for alert in alerts.active():
        json.dumps(alert.model_dump(mode="json"), allow_nan=False)
    assert "loss is nan and gradient norm is inf" in alerts.active()[0].message


@given(st.lists(st.one_of(st.floats(), st.none()), max_size=120))
@settings(max_examples=40)
def test_any_series_of_losses_is_judged_without_breaking(series: list[float | None]) -> None:
    alerts = SmartAlerts()
    changes = told(alerts, (Observation(step=step, loss=loss) for step, loss in enumerate(series)))
    for category in {change.alert.category for change in changes}:
        kinds = [change.kind for change in changes if change.alert.category == category]
        assert kinds == ["raised", "resolved"] * (len(kinds) // 2) + ["raised"] * (len(kinds) % 2)
    json.dumps([alert.model_dump(mode="json") for alert in alerts.active()], allow_nan=False)
