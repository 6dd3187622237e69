"""Whatever stands in other people's files can be printed and stored."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intake.display import MAX_SHOWN_CHARACTERS, describe, printable


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_becomes_printable_and_storable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert orjson.loads(orjson.dumps(shown)) == shown
    assert len(shown) <= 10 * MAX_SHOWN_CHARACTERS


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("caf\udce9", r"caf\udce9"),
        ("-rf", "-rf"),
        ("日本 🎉", "日本 🎉"),
    ],
)
def test_hostile_names_are_shown_escaped(name: str, shown: str) -> None:
    assert printable(name) == shown


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (42, "the number 42"),
        (" ", "empty text"),
        ("hello", 'the text "hello"'),
        ([], "an empty list"),
        ([1, 2], "a list of 2"),
        ({}, "an empty object"),
        ({"a": 1}, "an object with the key 'a'"),
        ({"a": 1, "b": 2}, "an object with the keys 'a', 'b'"),
        (b"x", "a value of type bytes"),
    ],
)
def test_values_are_described_in_words(value: object, words: str) -> None:
    assert describe(value) == words
