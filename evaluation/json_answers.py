"""Answers that are JSON: what they hold counts, the order of keys and the layout do not."""

from __future__ import annotations

from typing import Any

import orjson

from evaluation.answer_text import bare, only_block, without_thoughts

Field = tuple[str, ...]


class NotJson(Exception):
    """A text is not one JSON value, or one nested too deeply to compare."""


def json_in(text: str) -> Any:
    """Return the value that an answer holds: all of it, or its only code block; raise NotJson otherwise."""
    for candidate in (bare(text), only_block(without_thoughts(text))):
        if candidate is None:
            continue
        try:
            value = orjson.loads(candidate)
            orjson.dumps(
                value
            )  # refuses what is nested beyond 254 levels, which comparing would stumble over
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            continue
        return value
    raise NotJson


def same_json(one: Any, other: Any) -> bool:
    """Tell whether two values are equal; 1 is 1.0, and true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same_json(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def share_of_fields(expected: Any, given: Any) -> float:
    """Return how many fields of both together are in both and equal, from 0 to 1.

    A field is a value that is no object, known by the keys that lead to it; a list counts as one value.
    """
    if not (isinstance(expected, dict) and isinstance(given, dict)):
        return float(same_json(expected, given))
    gold, said = _fields(expected), _fields(given)
    equal = sum(field in said and same_json(value, said[field]) for field, value in gold.items())
    return equal / len(gold.keys() | said.keys()) if gold or said else 1.0


def _fields(value: dict[str, Any], path: Field = ()) -> dict[Field, Any]:
    found: dict[Field, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            found |= _fields(inner, (*path, key))
        else:
            found[(*path, key)] = inner
    return found
