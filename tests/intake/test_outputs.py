"""What a check leaves in a run's folder is whole, or it is not there."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson
import pytest

import durable
from config import RunPaths
from errors import RecordRefused
from intake.outputs import RecordFiles
from intake.raw_records import BadRecord, RawRecord, too_long
from intake.report import Limits, Refusal, ReportCard

PROBLEM = RecordRefused("record", "NaN", "a finite number", "replace it")


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "000001-abcdef01")


def card(*, usable: bool = True) -> ReportCard:
    return ReportCard(
        name="a.jsonl",
        sha256="0" * 64,
        size_bytes=1,
        container="jsonl",
        usable=usable,
        reason=None if usable else "too bad",
        limits=Limits(max_length=1, excess_length="drop", max_bad_fraction=0),
    )


def test_a_usable_file_leaves_its_records_and_its_report(run: RunPaths) -> None:
    with RecordFiles(run) as files:
        files.train(b'{"line":1}\n')
        files.hold_out(b'{"line":2}\n')
        files.publish(card())
    assert run.train_records.read_bytes() == b'{"line":1}\n'
    assert run.held_out_records.read_bytes() == b'{"line":2}\n'
    assert run.refused.read_bytes() == b""
    assert orjson.loads(run.report.read_bytes())["usable"] is True
    assert "USABLE" in run.report_text.read_text(encoding="utf-8")
    assert not list(run.data.glob(".*"))


def test_a_refused_file_leaves_nothing_to_train(run: RunPaths) -> None:
    with RecordFiles(run) as files:
        files.train(b'{"line":1}\n')
        files.publish(card(usable=False))
    assert {path.name for path in run.data.iterdir()} == {"refused.jsonl", "report.json", "report.txt"}


def test_a_refused_file_is_tidied_up_before_its_report_says_so(run: RunPaths) -> None:
    with RecordFiles(run) as files:
        files.train(b'{"line":1}\n')
        files.publish(card(usable=False))
        assert not list(run.data.glob(".*"))


def test_a_check_that_cannot_begin_leaves_nothing(run: RunPaths) -> None:
    obstacle = durable.partial_name(run.refused)
    obstacle.mkdir(parents=True)
    with pytest.raises(IsADirectoryError), RecordFiles(run):
        pass
    assert list(run.data.iterdir()) == [obstacle]


def test_a_check_that_is_broken_off_leaves_nothing(run: RunPaths) -> None:
    with pytest.raises(KeyboardInterrupt), RecordFiles(run) as files:
        files.train(b'{"line":1}\n')
        raise KeyboardInterrupt
    assert list(run.data.iterdir()) == []


def test_a_second_check_replaces_the_first(run: RunPaths) -> None:
    for line in (b'{"line":1}\n', b'{"line":2}\n'):
        with RecordFiles(run) as files:
            files.train(line)
            files.publish(card())
    assert run.train_records.read_bytes() == b'{"line":2}\n'


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        (RawRecord(1, {}, "caf\u00e9\r\n".encode(), 1), {"raw": "café"}),
        (BadRecord(1, PROBLEM, b"caf\xe9\n", 5, 1), {"raw_base64": base64.b64encode(b"caf\xe9\n").decode()}),
        (BadRecord(1, too_long(9000, 10), b"xxx", 9000, 1), {"raw": "xxx", "raw_bytes": 9000}),
    ],
)
def test_a_refused_record_is_kept_with_its_reason(
    run: RunPaths, source: RawRecord | BadRecord, kept: dict[str, object]
) -> None:
    with RecordFiles(run) as files:
        files.refuse(Refusal.of(source.line, PROBLEM), source)
        files.publish(card())
    reason = {
        "line": 1,
        "field": "record",
        "found": "NaN",
        "expected": "a finite number",
        "remedy": "replace it",
    }
    assert orjson.loads(run.refused.read_bytes()) == reason | kept


def test_without_a_run_nothing_is_written(tmp_path: Path) -> None:
    with RecordFiles(None) as files:
        files.train(b"x")
        files.hold_out(b"x")
        files.publish(card())
    assert list(tmp_path.iterdir()) == []
