"""An array is cut into its elements wherever its bytes happen to be split."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intake import json_array
from intake.json_array import read_array
from intake.raw_records import BadRecord, RawRecord

LIMIT = 1000
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('a"\\[]{},é\n'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from('a"[,'), inner, max_size=3),
    max_leaves=10,
)
OBJECT = st.dictionaries(st.sampled_from('abc"]}'), JSON, max_size=3)


def read(content: bytes, limit: int = LIMIT) -> list[RawRecord | BadRecord]:
    return list(read_array(io.BytesIO(content), limit))


@given(
    elements=st.lists(OBJECT, max_size=6),
    chunk=st.integers(1, 9),
    is_indented=st.booleans(),
    end=st.text(" \n", max_size=4),
)
def test_elements_are_found_across_any_chunk_border(
    elements: list[dict[str, Any]], chunk: int, is_indented: bool, end: str
) -> None:
    content = orjson.dumps(elements, option=orjson.OPT_INDENT_2 if is_indented else 0) + end.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "CHUNK_BYTES", chunk)
        records = read(content)
    assert [record.value for record in records if isinstance(record, RawRecord)] == elements
    assert [record.line for record in records] == list(range(1, len(elements) + 1))


def test_a_broken_element_does_not_take_the_next_one_with_it() -> None:
    records = read(b'[{"a":1}, {"a":NaN}, nonsense, {"a" 2}, {"a":1,"a":2}, 7, {"a":3}]')
    assert [isinstance(record, RawRecord) for record in records] == [True, *[False] * 5, True]
    assert records[-1].line == 7


@pytest.mark.parametrize(
    ("content", "bad"), [(b'[{"a":1},]', [2]), (b'[,{"a":1}]', [1]), (b"[]", []), (b"[ ]", [])]
)
def test_a_comma_too_many_is_one_bad_record(content: bytes, bad: list[int]) -> None:
    assert [record.line for record in read(content) if isinstance(record, BadRecord)] == bad


def test_an_element_above_the_limit_is_measured_and_not_kept() -> None:
    content = b'[{"a": "' + b'x\\"' * 3_000_000 + b'"}, {"a":1}]'
    bad, good = read(content)
    assert isinstance(bad, BadRecord) and isinstance(good, RawRecord)
    assert bad.size_bytes == 9_000_009
    assert len(bad.raw) <= LIMIT + 1
