"""Which answers are flagged, and that the file is small, whole and lasting."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from monitoring.events import ExampleEvent
from monitoring.flagged_examples import SHOWN_CHARACTERS, FlaggedExamples


def answered(prompt: str = "2+2?", answer: str = "4", **fields: Any) -> ExampleEvent:
    known: dict[str, Any] = {"step": 10, "loss": 0.5, "error": None, **fields}
    return ExampleEvent(
        system_prompt=None,
        prompt=prompt,
        golden_answer="4",
        model_answer=answer,
        answer_matches=answer == "4",
        golden_tokens=1,
        model_tokens=1,
        **known,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "flagged_examples.json"


def on_disk(path: Path) -> list[dict[str, Any]]:
    examples = json.loads(path.read_bytes())["examples"]
    assert isinstance(examples, list)
    return examples


@pytest.mark.parametrize(
    ("event", "reasons"),
    [
        (answered(), ()),
        (answered(loss=3.0), ()),
        (answered(loss=None), ()),
        (answered(answer="5"), ("mismatch",)),
        (answered(loss=3.01), ("high_loss",)),
        (answered(loss=math.nan), ("high_loss",)),
        (answered(answer="5", loss=7.0), ("mismatch", "high_loss")),
        (answered(answer="", error="cut off after 60 s"), ("error",)),
    ],
)
def test_wrong_surprising_and_missing_answers_are_flagged(
    event: ExampleEvent, reasons: tuple[str, ...], path: Path
) -> None:
    flagged = FlaggedExamples(path)
    flagged.observe(event, "000001-aaaaaaaa", "sums.jsonl")
    assert [example.reasons for example in flagged.examples] == ([reasons] if reasons else [])


def test_what_is_flagged_tells_where_it_came_from_and_outlives_the_daemon(path: Path) -> None:
    flagged = FlaggedExamples(path)
    flagged.observe(answered(answer="5", loss=math.nan), "000001-aaaaaaaa", "sums.jsonl")
    flagged.save()
    (example,) = on_disk(path)
    wanted = {"job_id": "000001-aaaaaaaa", "current_file": "sums.jsonl", "step": 10, "model_answer": "5"}
    assert example.items() >= {**wanted, "golden_answer": "4", "loss": None, "times": 1}.items()
    assert FlaggedExamples(path).examples == flagged.examples


def test_the_same_example_is_one_entry_with_its_newest_answer(path: Path) -> None:
    flagged = FlaggedExamples(path)
    for step in range(3):
        flagged.observe(answered(answer=f"wrong {step}", step=step), None, None)
    flagged.observe(answered("3+1?", "5"), None, None)
    first, second = flagged.examples
    assert (first.prompt, first.model_answer, first.step, first.times) == ("2+2?", "wrong 2", 2, 3)
    assert first.first_flagged_at < first.flagged_at
    assert second.times == 1


def test_at_most_a_thousand_are_kept_and_the_newest(path: Path) -> None:
    flagged = FlaggedExamples(path)
    for number in range(1005):
        flagged.observe(answered(f"{number}?", "5"), None, None)
    flagged.save()
    prompts = [example["prompt"] for example in on_disk(path)]
    assert prompts == [f"{number}?" for number in range(5, 1005)]


def test_what_a_person_flagged_stays_longest(path: Path) -> None:
    flagged = FlaggedExamples(path, most=2)
    flagged.flag(answered("by hand?"))
    for number in range(3):
        flagged.observe(answered(f"{number}?", "5"), None, None)
    assert [example.prompt for example in flagged.examples] == ["by hand?", "2?"]
    flagged.observe(answered("by hand?", "5"), None, None)
    assert flagged.examples[-1].reasons == ("manual", "mismatch")


def test_long_texts_are_cut_and_still_told_apart(path: Path) -> None:
    flagged = FlaggedExamples(path)
    for last in "ab":
        flagged.observe(answered("x" * 10_000 + last, "5"), None, None)
    assert [len(example.prompt) for example in flagged.examples] == [SHOWN_CHARACTERS] * 2


def test_the_file_is_written_only_when_something_has_changed(path: Path) -> None:
    flagged = FlaggedExamples(path)
    flagged.observe(answered(), None, None)
    flagged.save()
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0", b"[]", b'{"examples": [{"step": 1}]}', b'{"examples": 7}']
)
def test_a_damaged_file_is_put_aside_and_stops_nothing(
    content: bytes, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        flagged = FlaggedExamples(path)
    assert flagged.examples == ()
    assert path.with_name("flagged_examples.json.damaged").read_bytes() == content
    assert len(caplog.records) == 1


def test_a_disk_that_takes_nothing_is_logged_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "missing" / "flagged_examples.json"
    flagged = FlaggedExamples(path)
    flagged.observe(answered(answer="5"), None, None)
    with caplog.at_level(logging.WARNING):
        flagged.save()
        flagged.save()
    assert len(caplog.records) == 1
    path.parent.mkdir()
    flagged.save()
    assert len(on_disk(path)) == 1
