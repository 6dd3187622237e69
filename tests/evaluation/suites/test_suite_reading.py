"""A suite's file becomes items, or the line that is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from errors import UsageError
from evaluation.suites import Suite, load_suite, read_suite

GOOD = b'{"prompt": "What is 2 + 3?", "answer": "5"}'
REFUSED = {
    b"not json": "no JSON",
    b"[1]": "item: input should be",
    b'{"prompt": "a"}': "neither a whole pair",
    b'{"prompt": "a", "answer": ""}': "answer: ",
    b'{"prompt": "a", "answer": "b", "messages": []}': "messages: ",
    b'{"prompt": "a", "answer": "b", "lvl": "easy"}': "lvl: extra",
    b'{"prompt": "a", "answer": 5}': "answer: input should be a valid string",
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}': "the assistant's",
    b'{"messages": [{"role": "robot", "content": "a"}, {"role": "user", "content": "b"}]}': "messages.0.role",
    b'{"prompt": "a", "answer": "b", "grader": "taste"}': "grader",
    b"\xff": "no JSON",
}


def suite_of(*lines: bytes) -> Suite:
    return read_suite(b"\n".join(lines), name="mine", title="Mine", place="mine.jsonl")


def test_both_forms_of_a_line_become_the_same_item() -> None:
    pair = suite_of(GOOD).items[0]
    conversation = (
        b'{"messages": [{"role": "user", "content": "What is 2 + 3?"}, '
        b'{"role": "assistant", "content": "5"}], "level": "easy"}'
    )
    talk = suite_of(conversation).items[0]
    assert (pair.messages, pair.expected, pair.item_id) == (talk.messages, talk.expected, talk.item_id)
    assert (pair.level, talk.level) == (None, "easy")
    assert pair.conversation[-1] == {"role": "assistant", "content": "5"}


@pytest.mark.parametrize("line", REFUSED)
def test_a_line_that_is_no_item_is_named_with_what_was_found(line: bytes) -> None:
    with pytest.raises(UsageError, match=r"^mine\.jsonl:3: ") as refusal:
        suite_of(GOOD, b"", line)
    assert REFUSED[line] in str(refusal.value)


def test_an_id_that_comes_twice_is_refused_with_both_lines() -> None:
    twice = b'{"id": "one", "prompt": "a", "answer": "b"}'
    with pytest.raises(UsageError, match=r"mine\.jsonl:2: found the id 'one' of line 1 again"):
        suite_of(twice, twice)
    with pytest.raises(UsageError, match="of line 1 again"):
        suite_of(GOOD, GOOD)


def test_a_file_without_items_is_refused() -> None:
    with pytest.raises(UsageError, match="found no item"):
        suite_of(b"", b" ")


def test_levels_come_in_the_order_of_the_items() -> None:
    lines = [
        b'{"prompt": "%d", "answer": "b", "level": "%s"}' % (number, level)
        for number, level in enumerate([b"warm", b"hot", b"warm"])
    ]
    assert suite_of(*lines).levels == ("warm", "hot")


def test_a_file_of_the_users_is_a_suite_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(GOOD + b"\n")
    suite = load_suite(file)
    assert (suite.name, len(suite.items)) == ("mine", 1)
    file.write_bytes(GOOD + b"\n\n")
    assert load_suite(str(file)).sha256 != suite.sha256


def test_a_suite_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    for name in ("everyday", str(tmp_path / "none.jsonl"), str(tmp_path)):
        with pytest.raises(UsageError, match="everyday_facts"):
            load_suite(name)
