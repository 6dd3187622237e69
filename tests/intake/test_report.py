"""The report card says what was found, why, and what to do; to programs and to people."""

from __future__ import annotations

import orjson
import pytest

from config import DataConfig
from errors import RecordRefused
from intake.report import WIDTH, Limits, Plan, Refusal, ReportCard
from intake.token_histogram import TokenCounter

LIMITS = Limits(max_length=100, excess_length="drop", max_bad_fraction=0.1)


def refusals(count: int) -> list[Refusal]:
    problem = RecordRefused("messages[1].content", "null", "text", "write the text or remove the record")
    return [Refusal.of(line, problem) for line in range(1, count + 1)]


def card(**changes: object) -> ReportCard:
    counter = TokenCounter()
    for length in range(1, 121):
        counter.add(length, length, length // 3)
    facts: dict[str, object] = {
        "name": "tickets.jsonl",
        "sha256": "ab" * 32,
        "size_bytes": 12_345,
        "container": "jsonl",
        "usable": True,
        "reason": None,
        "format": "messages",
        "format_reason": "line 1: it has the key 'messages'",
        "kind": "chat",
        "records_total": 120,
        "accepted": 81,
        "refused": 5,
        "duplicates": 4,
        "dropped": 20,
        "held_out": 10,
        "over_length": 20,
        "tokens": counter.summary(),
        "refusals": refusals(5),
        "notes": ["the key 'id' is not used (120 records)"],
        "plan": Plan(
            records=81,
            rows=81,
            epochs=2,
            steps_per_epoch=11,
            total_steps=22,
            tokens_per_epoch=4000,
            estimated_seconds=200,
        ),
        "limits": LIMITS,
    }
    return ReportCard.model_validate(facts | changes)


def test_the_text_holds_every_finding() -> None:
    text = card().to_text()
    for words in (
        "Report card of tickets.jsonl",
        "USABLE",
        "JSON lines, 12,345 bytes, sha256 abababab",
        "messages (conversations): line 1: it has the key 'messages'",
        "120  in the file",
        "81  to train",
        "10  held out for evaluation",
        "4  duplicates",
        "20  left out: longer than 100 tokens",
        "5  refused (4.2%, limit 10.0%)",
        "a record has 1 to 120",
        "limit 100 (data.max_length): 20 longer, left out",
        "22 steps: 2 epochs of 11, each of 81 rows and 4,000 tokens; about 3 min",
        "the key 'id' is not used (120 records)",
        "line 3, messages[1].content",
        "found     null",
        "expected  text",
        "do        write the text or remove the record",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_the_histogram_is_drawn_to_scale() -> None:
    text = card().to_text()
    bars = {line.split()[0]: line.count("█") for line in text.splitlines() if "█" in line}
    assert list(bars)[:2] == ["0–19", "20–39"]
    assert bars["100–120"] == 48
    assert bars["0–19"] == 43  # 19 records, 21 in the longest bar


def test_only_the_first_twenty_refusals_are_in_the_text_and_all_in_the_json() -> None:
    many = card(refused=50, refusals=refusals(50))
    assert "the first 20 of 50" in many.to_text()
    assert many.to_text().count("do        write") == 20
    assert len(orjson.loads(many.to_json())["refusals"]) == 50


def test_a_refused_file_says_so_first() -> None:
    text = card(usable=False, reason="the file is empty (0 bytes); copy it again", plan=None).to_text()
    head = text.splitlines()
    assert head[0].endswith("REFUSED")
    assert head[2] == "The file is empty (0 bytes); copy it again."
    assert "Plan" not in text


@pytest.mark.parametrize(
    ("container", "unit"), [("json", "element"), ("csv", "row"), ("parquet", "row"), (None, "record")]
)
def test_places_are_called_what_they_are(container: str | None, unit: str) -> None:
    assert f"{unit} 1, messages[1].content" in card(container=container).to_text()


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "not known yet"), (45, "about 45 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_time_is_told_in_fitting_units(seconds: float | None, words: str) -> None:
    plan = Plan(
        records=1,
        rows=1,
        epochs=1,
        steps_per_epoch=1,
        total_steps=1,
        tokens_per_epoch=9,
        estimated_seconds=seconds,
    )
    assert words in card(plan=plan).to_text()
    assert "1 steps: 1 epoch of 1" in card(plan=plan).to_text()


def test_the_json_reads_back_the_same() -> None:
    assert ReportCard.model_validate(orjson.loads(card().to_json())) == card()
    assert orjson.loads(card().to_json())["schema_version"] == 1


def test_a_file_of_plain_text_is_trained_whole() -> None:
    assert "all of them trained" in card(kind="text", format="text").to_text()
    assert "of which" in card().to_text()


def test_the_limits_are_those_of_the_configuration() -> None:
    assert set(Limits.model_fields) <= set(DataConfig.model_fields)
