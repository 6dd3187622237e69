"""Each common spelling of a record becomes the same conversation, text or pair, or is refused by name."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from errors import RecordRefused
from intake.formats import SIGNATURES, Format, Record, detect_format, kind_of, normalise, unused_keys

USER = {"role": "user", "content": "2+2?"}
ASSISTANT = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Count."}
WORSE = {"role": "assistant", "content": "5"}
TALK = [USER, ASSISTANT]
SHAREGPT = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
PARTS = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]


def read(raw: dict[str, Any]) -> Record:
    return normalise(raw, detect_format(raw).format, 7)


def refusal(raw: dict[str, Any]) -> RecordRefused:
    with pytest.raises(RecordRefused) as caught:
        read(raw)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "format"),
    [
        ({"messages": TALK}, "messages"),
        ({"messages": SHAREGPT}, "messages"),
        ({"conversations": SHAREGPT}, "conversations"),
        ({"conversations": TALK}, "conversations"),
        ({"instruction": "2+2?", "output": "4"}, "alpaca"),
        ({"instruction": "2+2?", "input": "", "output": "4"}, "alpaca"),
        ({"prompt": "2+2?", "completion": "4"}, "prompt_completion"),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt_completion"),
        ({"prompt": [USER], "completion": "4"}, "prompt_completion"),
        ({"prompt": "2+2?", "response": "4"}, "prompt_response"),
        ({"question": "2+2?", "answer": "4"}, "question_answer"),
        ({"messages": [{"role": "user", "content": PARTS}, ASSISTANT]}, "messages"),
        ({"prompt": PARTS, "completion": "4"}, "prompt_completion"),
    ],
)
def test_every_chat_format_becomes_the_same_conversation(raw: dict[str, Any], format: Format) -> None:
    assert detect_format(raw).format == format
    assert read(raw).messages == TALK
    assert read(raw).key() == Record(99, "chat", TALK).key()


def test_alpaca_puts_the_input_below_the_instruction() -> None:
    assert read({"instruction": "Add.", "input": "2, 2", "output": "4"}).messages == [
        {"role": "user", "content": "Add.\n\n2, 2"},
        ASSISTANT,
    ]


@pytest.mark.parametrize(
    "raw",
    [
        {"system": "Count.", "conversations": TALK},
        {"system": "Count.", "instruction": "2+2?", "output": "4"},
        {"system": "Count.", "prompt": "2+2?", "completion": "4"},
        {"system": "Count.", "prompt": "2+2?", "response": "4"},
        {"system": "Count.", "question": "2+2?", "answer": "4"},
        {"conversations": [{"from": "system", "value": "Count."}, *TALK]},
    ],
)
def test_a_system_text_becomes_the_first_turn(raw: dict[str, Any]) -> None:
    assert read(raw).messages == [SYSTEM, *TALK]


def test_plain_text_stays_text() -> None:
    record = read({"text": "once upon a time"})
    assert (record.kind, record.text) == ("text", "once upon a time")


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WORSE]},
        {"prompt": "2+2?", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
        {"prompt": [USER], "chosen": "4", "rejected": [USER, WORSE]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
        {"prompt": "2+2?", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE], "messages": TALK},
    ],
)
def test_every_spelling_of_a_preference_becomes_the_same_pair(raw: dict[str, Any]) -> None:
    record = read(raw)
    assert record.kind == "preference"
    assert (record.prompt, record.chosen, record.rejected) == ([USER], [ASSISTANT], [WORSE])


def test_the_shared_beginning_of_a_pair_ends_before_the_assistant_speaks() -> None:
    record = read({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT, USER, WORSE]})
    assert (record.prompt, record.chosen) == ([USER], [ASSISTANT])
    assert record.rejected == [ASSISTANT, USER, WORSE]


@pytest.mark.parametrize(
    ("raw", "field", "found"),
    [
        ({"prompt": "2+2?", "chosen": "4", "rejected": "4"}, "rejected", "the same answer"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": [USER, ASSISTANT]}, "rejected", "the same answer"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "rejected", "the same answer"),
        ({"chosen": "4", "rejected": "5"}, "prompt", "no prompt"),
        (
            {"prompt": "2+2?", "chosen": [{**USER, "content": "3+3?"}, WORSE], "rejected": "5"},
            "chosen",
            "a user turn",
        ),
        ({"prompt": [USER], "chosen": [USER], "rejected": "5"}, "chosen", "nothing after"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": " "}, "rejected", "empty text"),
        (
            {"prompt": "2+2?", "chosen": "4", "rejected": "5", "tools": [{"name": "add"}]},
            "tools",
            "a list of 1",
        ),
    ],
)
def test_a_pair_that_teaches_nothing_is_refused(raw: dict[str, Any], field: str, found: str) -> None:
    problem = refusal(raw)
    assert (problem.field, found in problem.found) == (field, True)


def test_keys_of_no_format_are_refused_with_all_known_formats() -> None:
    problem = refusal({"in": "2+2?", "out": "4"})
    assert problem.found == "an object with the keys 'in', 'out'"
    for keys in SIGNATURES.values():
        assert "+".join(keys) in problem.expected


@pytest.mark.parametrize("key", ["images", "audio", "videos"])
def test_pictures_and_sounds_beside_the_text_are_refused(key: str) -> None:
    assert refusal({"messages": TALK, key: ["cat.png"]}).field == key
    assert read({"messages": TALK, key: []}).messages == TALK


def test_unused_keys_are_found_also_inside_turns() -> None:
    raw = {"id": 1, "messages": [USER, {**ASSISTANT, "weight": 0}]}
    assert unused_keys(raw, "messages") == {"id", "messages[].weight"}


@pytest.mark.parametrize(
    "record",
    [
        Record(3, "chat", [SYSTEM, *TALK]),
        Record(3, "chat", TALK, tools=[{"name": "add"}]),
        Record(3, "chat", TALK, grader={"name": "number", "tolerance": 0.5}),
        Record(3, "text", text="once"),
        Record(3, "preference", prompt=[USER], chosen=[ASSISTANT], rejected=[WORSE]),
    ],
)
def test_a_stored_record_reads_back_the_same(record: Record) -> None:
    stored = orjson.loads(orjson.dumps(record.to_json()))
    assert Record.from_json(stored) == record
    assert Record.from_json(stored).key() == record.key()


@pytest.mark.parametrize(
    "raw",
    [
        {"messages": TALK},
        {"instruction": "2+2?", "output": "4"},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4"},
        {"question": "2+2?", "answer": "4"},
    ],
)
def test_a_record_may_name_its_grader(raw: dict[str, Any]) -> None:
    assert read(raw).grader is None
    assert read(raw | {"grader": None}).grader is None
    assert read(raw | {"grader": "number"}).grader == {"name": "number"}
    assert read(raw | {"grader": {"name": "number", "tolerance": 0.5}}).grader == {
        "name": "number",
        "tolerance": 0.5,
    }
    assert unused_keys(raw | {"grader": "number"}, detect_format(raw).format) == set()


@pytest.mark.parametrize(
    ("raw", "field", "found"),
    [
        ({"messages": TALK, "grader": "nummer"}, "grader.name", "'nummer'"),
        (
            {"messages": TALK, "grader": {"name": "regex", "pattern": "x"}},
            "grader",
            "wrong by the grader 'regex'",
        ),
        ({"messages": [*TALK, USER], "grader": "exact"}, "grader", "no answer comes last"),
        ({"question": "2+2?", "answer": "4", "grader": 7}, "grader", "7"),
    ],
)
def test_a_grader_that_cannot_judge_its_record_is_refused(
    raw: dict[str, Any], field: str, found: str
) -> None:
    problem = refusal(raw)
    assert (problem.field, found in problem.found) == (field, True)


def test_the_key_depends_on_everything_that_is_trained_and_on_nothing_else() -> None:
    records = [
        Record(1, "chat", TALK),
        Record(1, "chat", [SYSTEM, *TALK]),
        Record(1, "chat", TALK, tools=[{"name": "add"}]),
        Record(1, "text", text="2+2?"),
        Record(1, "preference", prompt=[USER], chosen=[ASSISTANT], rejected=[WORSE]),
        Record(1, "preference", prompt=[USER], chosen=[WORSE], rejected=[ASSISTANT]),
    ]
    assert len({record.key() for record in records}) == len(records)
    assert Record(1, "chat", TALK).key() == Record(2, "chat", list(TALK)).key()
    assert Record(1, "chat", TALK, grader={"name": "contains"}).key() == records[0].key()
    assert len(records[0].key()) == 16


def test_every_format_is_of_a_kind() -> None:
    kinds = {format: kind_of(format) for format in SIGNATURES}
    assert {format for format, kind in kinds.items() if kind == "chat"} == set(SIGNATURES) - {
        "text",
        "preference",
    }
