"""How names and values from other people's files are shown: escaped, shortened, on one line."""

from __future__ import annotations

from typing import Any

MAX_SHOWN_CHARACTERS = 60


def printable(text: str, limit: int = MAX_SHOWN_CHARACTERS) -> str:
    """Return `text` with everything unprintable escaped, cut to about `limit` characters.

    Control characters, direction marks and lone surrogates become ``\\x1b``, ``\\u202e``, ``\\udc80``, so
    that the result can be written to any terminal or JSON file.
    """
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)


def describe(value: Any) -> str:
    """Say in a few words what a parsed value is, for the `found` of a refusal."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {printable(str(value))}"
        case str():
            return f'the text "{printable(value)}"' if value.strip() else "empty text"
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case dict():
            return f"an object with {describe_keys(value)}" if value else "an empty object"
    return f"a value of type {type(value).__name__}"


def describe_keys(value: dict[str, Any], limit: int = 8) -> str:
    """List the keys of an object that has some, at most `limit` of them."""
    names = [f"'{printable(str(key), 30)}'" for key in list(value)[:limit]]
    more = ", …" if len(value) > limit else ""
    return f"the keys {', '.join(names)}{more}" if len(value) > 1 else f"the key {names[0]}"
