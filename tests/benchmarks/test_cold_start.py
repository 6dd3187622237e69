"""The cold-start benchmark times a real daemon and its parts add up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import cold_start
from benchmarks.cold_start import ColdStart, measure, to_table


def test_each_part_begins_where_the_one_before_it_ended() -> None:
    parts = ColdStart.of([100.0, 103.0, 103.5, 104.5, 106.5, 110.5, 118.5])
    assert parts == ColdStart(
        settle=3.0, claim=0.5, imports=1.0, validate=2.0, model=4.0, first_step=8.0, total=18.5
    )


def test_a_real_daemon_gives_every_part_and_they_add_up(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    start = measure(tiny_model, preload=True, overrides=["inbox.settle_seconds=0.3", "train.threads=1"])
    parts = asdict(start)
    total = parts.pop("total")
    assert all(seconds >= 0 for seconds in parts.values())
    assert start.settle >= 0.3
    assert sum(parts.values()) == pytest.approx(total)
    assert to_table(start, start).row_count == 7
    assert list(tmp_path.iterdir()) == []


def test_without_a_base_model_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cold_start, "ROOT", tmp_path)
    assert cold_start.main([]) == 2
    assert "trainbox prepare" in capsys.readouterr().err
