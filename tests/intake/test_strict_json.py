"""Only what the JSON standard allows, and only what Python can hold exactly, is parsed."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import RecordRefused
from intake.strict_json import MAX_DEPTH, parse_object


class Pairs(list[tuple[str, Any]]):
    """The pairs of an object, in order; keys may repeat."""


KEYS = st.text(st.sampled_from('ab":\\ \n'), max_size=4)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(KEYS, inner), max_size=4).map(Pairs),
    max_leaves=12,
)
SPACE = st.sampled_from(["", " ", "\n", "\t  "])


def write(value: Any, space: str) -> str:
    """Write JSON with `space` around every symbol, repeated keys and all."""
    if isinstance(value, Pairs):
        pairs = (f"{json.dumps(key)}{space}:{space}{write(item, space)}" for key, item in value)
        return f"{{{space}{f',{space}'.join(pairs)}{space}}}"
    if isinstance(value, list):
        return f"[{f'{space},'.join(write(item, space) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


def has_repeated_key(value: Any) -> bool:
    if isinstance(value, Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(has_repeated_key(item) for _, item in value)
    return isinstance(value, list) and any(map(has_repeated_key, value))


@given(st.lists(st.tuples(KEYS, VALUES), max_size=4).map(Pairs), SPACE)
def test_an_object_is_parsed_as_by_json_unless_a_key_repeats(pairs: Pairs, space: str) -> None:
    raw = write(pairs, space).encode()
    if has_repeated_key(pairs):
        with pytest.raises(RecordRefused, match="twice"):
            parse_object(raw)
    else:
        assert parse_object(raw) == json.loads(raw)


@given(
    st.binary(max_size=80)
    | st.text(st.sampled_from('{}[]",:\\u0d8123eE+-. \x00né'), max_size=30).map(str.encode)
)
def test_any_bytes_are_parsed_or_refused_as_a_record(raw: bytes) -> None:
    try:
        value = parse_object(raw)
    except RecordRefused as problem:
        assert str(problem).isprintable()
    else:
        assert value == orjson.loads(raw)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"a": 12345678901234567890123}', "23 digits"),
        (b'{"a": "\\ud83d"}', "ud83d"),
        (b'{"a": "caf\xe9"}', "0xe9 at byte 11"),
        (b'{"a": "\x00"}', "zero byte at byte 8"),
        (b'{"a": "x\n"}', "not JSON"),
        (b"{'a': 1}", "single quotes"),
        (b'{"a": 1,}', "not JSON"),
        (b'{"a": 1},', "comma after the object"),
        (b'{"a": 1} {"b": 2}', "more after the end of the object, at character 10"),
        (b"[1]", "a list of 1"),
        (b"[", "only ["),
        (b"{", "only {"),
        (b"42", "the number 42"),
        (b'{"a": {"b": 1, "b": 2}}', "twice"),
        (b"[" * 100_000, "nesting deeper"),
    ],
)
def test_what_is_wrong_is_named(raw: bytes, found: str) -> None:
    with pytest.raises(RecordRefused) as refusal:
        parse_object(raw)
    assert found in refusal.value.found
    assert refusal.value.remedy and refusal.value.expected


@pytest.mark.parametrize(("depth", "is_allowed"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)])
def test_nesting_is_limited(depth: int, is_allowed: bool) -> None:
    raw = b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
    if is_allowed:
        assert parse_object(raw)
    else:
        with pytest.raises(RecordRefused, match="nesting"):
            parse_object(raw)


@pytest.mark.parametrize("number", ["18446744073709551615", "-9223372036854775808", "1e300", "0.1"])
def test_numbers_that_can_be_held_are_kept(number: str) -> None:
    assert parse_object(f'{{"a": {number}}}'.encode())["a"] == json.loads(number)
