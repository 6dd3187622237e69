"""Rows of CSV become records; a broken row is one bad record."""

from __future__ import annotations

import io
from typing import Any

import pytest

from intake.raw_records import BadRecord, RawRecord
from intake.tables import read_csv

LIMIT = 4096


def rows_of(content: bytes, limit: int = LIMIT) -> list[RawRecord | BadRecord]:
    return list(read_csv(io.BytesIO(content), limit))


def values_of(records: list[RawRecord | BadRecord]) -> list[Any]:
    return [record.value if isinstance(record, RawRecord) else record.problem.found for record in records]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_tells_the_delimiter(delimiter: str) -> None:
    content = delimiter.join(["question", "answer"]) + "\n" + delimiter.join(["2+2?", "4"]) + "\n"
    assert values_of(rows_of(content.encode())) == [{"question": "2+2?", "answer": "4"}]


def test_quoted_cells_may_hold_commas_quotes_and_line_ends() -> None:
    content = b'question,answer\n"one, ""two""\nthree",4\n\nfive,6\n'
    records = rows_of(content)
    assert values_of(records) == [
        {"question": 'one, "two"\nthree', "answer": "4"},
        {"question": "five", "answer": "6"},
    ]
    assert [record.raw for record in records] == [b'"one, ""two""\nthree",4\n', b"five,6\n"]
    assert [record.line for record in records] == [1, 2]


def test_an_empty_cell_is_no_key() -> None:
    assert values_of(rows_of(b"instruction,input,output\na,,b\n")) == [{"instruction": "a", "output": "b"}]


def test_cells_with_turns_are_parsed_as_json() -> None:
    turns = '"[{""role"": ""user"", ""content"": ""[1]""}]"'
    content = f"messages,note\n{turns},[1]\n".encode()
    assert values_of(rows_of(content)) == [{"messages": [{"role": "user", "content": "[1]"}], "note": "[1]"}]
    content = f"prompt,completion\n{turns},[1]\n".encode()
    assert values_of(rows_of(content)) == [
        {"prompt": [{"role": "user", "content": "[1]"}], "completion": "[1]"}
    ]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (b"a", "1 cells"),
        (b"a,b,c", "3 cells"),
        (b'"a"b,c', "a row that is not CSV"),
        (b"caf\xe9,b", "byte 0xe9 at byte 4 of line 3"),
        (b"a\rb,c", "a row that is not CSV"),
        (b"x" * 5000 + b",b", "5,003 bytes"),
    ],
)
def test_a_broken_row_is_one_bad_record_and_the_next_one_is_read(row: bytes, found: str) -> None:
    records = rows_of(b"question,answer\none,two\n" + row + b"\nthree,four\n")
    assert isinstance(records[1], BadRecord)
    assert records[1].problem.found.startswith(found)
    assert values_of(records)[0] == {"question": "one", "answer": "two"}
    assert values_of(records)[-1] == {"question": "three", "answer": "four"}


def test_turns_written_as_python_and_not_as_json_are_refused() -> None:
    (record,) = rows_of(b"messages\n\"[{'role': 'user'}]\"\n")
    assert isinstance(record, BadRecord)
    assert (record.problem.field, record.problem.expected) == ("messages", "JSON in this cell")


def test_a_quote_that_never_ends_swallows_no_more_than_the_limit() -> None:
    records = rows_of(b"text\n" + b'"open\n' + b"row\n" * 3000)
    assert isinstance(records[0], BadRecord)
    assert all(isinstance(record, RawRecord) for record in records[1:])
    assert len(records) > 1900
