"""What a file turns out to be as a whole: its format, its kind, and what is worth a note."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from intake.candidates import Candidate, CandidateReader

CHAT = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
CALL = {"name": "add", "arguments": {}}


def reader(
    folder: Path, records: list[Any], suffix: str = ".jsonl", *, supports_tools: bool = True
) -> CandidateReader:
    path = folder / f"file{suffix}"
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    return CandidateReader(path, 10_000, 1_000_000, supports_tools=supports_tools)


def problems(candidates: list[Candidate]) -> list[str | None]:
    return [candidate.problem.field if candidate.problem else None for candidate in candidates]


def test_the_first_usable_record_decides_the_format(tmp_path: Path) -> None:
    file = reader(tmp_path, [{"a": 1}, {"text": " "}, {"question": "2+2?", "answer": "4"}, {"text": "once"}])
    assert problems(list(file.read())) == ["record", "text", None, "record"]
    assert file.detection is not None
    assert (file.detection.format, file.kind, file.detected_at) == ("question_answer", "chat", "line 3")
    assert file.detection.why == "it has the keys 'question', 'answer'"


def test_other_formats_of_the_same_kind_may_join(tmp_path: Path) -> None:
    file = reader(tmp_path, [CHAT, {"prompt": "3+3?", "completion": "6"}, CHAT])
    assert problems(list(file.read())) == [None, None, None]
    assert file.formats == {"messages": 2, "prompt_completion": 1}
    assert "the file mixes formats of one kind: 2 messages, 1 prompt_completion" in file.notes()


@pytest.mark.parametrize("other", [{"text": "once"}, {"prompt": "2+2?", "chosen": "4", "rejected": "5"}])
def test_records_of_another_kind_are_refused(tmp_path: Path, other: dict[str, str]) -> None:
    candidates = list(reader(tmp_path, [CHAT, other]).read())
    assert problems(candidates) == [None, "record"]
    assert candidates[1].problem is not None
    assert candidates[1].problem.expected == "chat records, like the first one"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (CHAT | {"tools": [CALL]}, "tools"),
        ({"messages": [CHAT["messages"][0], {"role": "assistant", "tool_calls": [CALL]}]}, "messages[1]"),
        ({"messages": [*CHAT["messages"], {"role": "tool", "content": "4"}]}, "messages[2]"),
    ],
)
def test_tools_are_refused_where_the_template_has_no_place_for_them(
    tmp_path: Path, record: dict[str, Any], field: str
) -> None:
    assert problems(list(reader(tmp_path, [record], supports_tools=False).read())) == [field]
    assert problems(list(reader(tmp_path, [record], supports_tools=True).read())) == [None]


def test_keys_that_are_not_used_are_counted_and_named_escaped(tmp_path: Path) -> None:
    file = reader(tmp_path, [CHAT | {"id": 1}, CHAT | {"id": 2, "\x1b[2J": 3}])
    list(file.read())
    assert list(file.notes()) == [
        "the key '\\x1b[2J' is not used (1 records)",
        "the key 'id' is not used (2 records)",
    ]


def test_no_more_than_twenty_keys_are_named(tmp_path: Path) -> None:
    file = reader(tmp_path, [CHAT | {f"key {number}": 1} for number in range(100)])
    list(file.read())
    assert len(list(file.notes())) == 20


def test_turns_that_nobody_answers_are_noted(tmp_path: Path) -> None:
    file = reader(tmp_path, [CHAT, {"messages": [*CHAT["messages"], CHAT["messages"][0]]}])
    assert problems(list(file.read())) == [None, None]
    assert list(file.notes()) == ["the last turn is not the assistant's and is not trained (1 records)"]


def test_json_lines_under_the_name_of_an_array_are_noted(tmp_path: Path) -> None:
    file = reader(tmp_path, [CHAT, CHAT], ".json")
    assert problems(list(file.read())) == [None, None]
    assert "read as JSON lines" in next(file.notes())


def test_blank_lines_are_noted(tmp_path: Path) -> None:
    (tmp_path / "file.jsonl").write_bytes(b"\n\n" + orjson.dumps(CHAT))
    file = CandidateReader(tmp_path / "file.jsonl", 10_000, 1_000_000, supports_tools=True)
    list(file.read())
    assert list(file.notes()) == ["blank lines were passed over (2)"]


def test_damage_ends_the_file_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b"[" + orjson.dumps(CHAT) + b",{")
    file = CandidateReader(tmp_path / "file.json", 10_000, 1_000_000, supports_tools=True)
    assert problems(list(file.read())) == [None]
    assert file.damage is not None and "never closed" in file.damage
