"""Alerts outside a run: kept, bounded, and never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from monitoring.alert_log import AlertLog
from monitoring.events import AlertEvent, decode_event


def alert(number: int) -> AlertEvent:
    return AlertEvent(
        *(), kind="raised", severity="warning", category="low_disk", message=f"number {number}",
        details={"disk_free_gib": 1.5}, recommendation="Make room.",
    )  # fmt: skip


def messages(path: Path) -> list[str]:
    events = [decode_event(line) for line in path.read_bytes().splitlines()]
    return [event.message for event in events if isinstance(event, AlertEvent)]


def test_alerts_are_kept_over_daemons_in_the_order_they_came(tmp_path: Path) -> None:
    path = tmp_path / "alerts.jsonl"
    AlertLog(path).keep(alert(1))
    AlertLog(path).keep(alert(2))
    assert messages(path) == ["number 1", "number 2"]


def test_file_stays_small_and_the_newest_alerts_stay_in_it(tmp_path: Path) -> None:
    path, sizes = tmp_path / "alerts.jsonl", []
    log = AlertLog(path, most_bytes=2000)
    for number in range(100):
        log.keep(alert(number))
        sizes.append(path.stat().st_size)
    assert max(sizes) <= 2000
    kept = messages(path)
    assert len(kept) > 2
    assert kept == [f"number {number}" for number in range(100 - len(kept), 100)]


def test_a_folder_that_is_gone_is_logged_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        AlertLog(tmp_path / "missing" / "alerts.jsonl").keep(alert(1))
    assert "Cannot keep an alert" in caplog.text
