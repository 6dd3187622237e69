"""`trainbox status` as a person reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import cli
from config import Paths
from monitoring.events import OutcomeEvent, now
from monitoring.training_status import StatusWriter


@pytest.fixture
def writer(tmp_path: Path) -> StatusWriter:
    """The writer of a daemon that lives: this process is it."""
    paths = Paths(tmp_path)
    paths.create()
    return StatusWriter(paths.status_file, interval_seconds=3600.0)


class Capture:
    """Runs the command in this process."""

    def __init__(
        self, base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._capsys = capsys
        monkeypatch.setattr(sys, "argv", ["trainbox", "status", "--base", str(base)])

    def status(self) -> str:
        """Return what it prints, with lines that were broken joined again."""
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        return " ".join(self._capsys.readouterr().out.split())


@pytest.fixture
def capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Capture:
    return Capture(tmp_path, monkeypatch, capsys)


def test_status_tells_what_alarms_and_what_to_do(writer: StatusWriter, capture: Capture) -> None:
    writer.write()
    assert "critical" not in capture.status()
    writer.observe(OutcomeEvent(outcome="failed", kind="nan", message="step 7", step=7))
    writer.write()
    (alert,) = writer.status.active_alerts
    assert f"critical {alert.message}. {alert.recommendation}" in capture.status()
    writer.update(state="stopped")
    assert f"critical at last {alert.message}. {alert.recommendation}" in capture.status()


def test_status_tells_why_it_is_paused_as_long_as_it_is(writer: StatusWriter, capture: Capture) -> None:
    writer.receive("pause", "a game [bold]tonight", now())
    writer.update(state="paused")
    assert "state paused reason a game [bold]tonight" in capture.status()
    writer.receive("skip", "of another command", now())
    assert "another" not in capture.status()
    writer.update(state="idle")
    assert "tonight" not in capture.status()
