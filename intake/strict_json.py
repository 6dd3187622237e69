"""JSON as the standard writes it and nothing more: one object from bytes, or the reason why not.

orjson parses; it already refuses invalid UTF-8, lone surrogates, NaN, infinity and what follows the
value. Only what it lets through is checked here: repeated keys, whole numbers beyond 64 bits (it rounds
them) and nesting.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

from errors import RecordRefused
from intake.display import describe, printable

MAX_DEPTH = 32
RECORD = "record"
"""The field of a refusal that concerns the whole record."""

_INT64_LIMIT = 2.0**63
_ONE_OBJECT = 'one JSON object, for instance {"messages": [...]}'
_NAME_IT_JSON = "a file that is one JSON array needs a name that ends in .json"


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse one JSON object; raise RecordRefused with what was found when it is not exactly that."""
    value = parse_value(raw)
    if type(value) is dict:
        return value
    remedy = _NAME_IT_JSON if type(value) is list else "put each record on a line of its own as an object"
    raise RecordRefused(RECORD, describe(value), _ONE_OBJECT, remedy)


def parse_value(raw: bytes) -> Any:
    """Parse any JSON value under the same rules as `parse_object`."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        _explain(raw, error)
    strings, has_huge_number = _inspect(value)
    if has_huge_number or not _has_quotes_for(strings, raw):
        json.loads(raw, object_pairs_hook=_refuse_repeated_key, parse_int=_refuse_huge_integer)
    return value


def _inspect(value: Any) -> tuple[int, bool]:
    """Return how many strings `value` holds, keys included, and whether a number may have been rounded."""
    strings = 1 if type(value) is str else 0
    has_huge_number = False
    level = [value] if type(value) in (dict, list) else []
    for _ in range(MAX_DEPTH):
        deeper = []
        for container in level:
            if type(container) is dict:
                strings += len(container)
                items = container.values()
            else:
                items = container
            for item in items:
                kind = type(item)
                if kind is str:
                    strings += 1
                elif kind is dict or kind is list:
                    deeper.append(item)
                elif kind is float and not -_INT64_LIMIT < item < _INT64_LIMIT:
                    has_huge_number = True
        if not deeper:
            return strings, has_huge_number
        level = deeper
    _refuse_depth()


def _has_quotes_for(strings: int, raw: bytes) -> bool:
    """Tell whether `raw` has two quotes for each string that was parsed, and no more.

    That proves that no key was repeated: a repeated one would be missing from what was parsed. Escaped
    quotes are taken off; where several backslashes meet perhaps too few, never too many. A scan takes a
    microsecond for a kilobyte, json with a hook takes 40.
    """
    surplus = raw.count(b'"') - 2 * strings
    return surplus == 0 or surplus == raw.count(b'\\"') - raw.count(b'\\\\"')


def _refuse_depth() -> NoReturn:
    found = f"nesting deeper than {MAX_DEPTH} levels"
    raise RecordRefused(RECORD, found, "at most that", "flatten or remove the nested value")


def _refuse_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise RecordRefused(
            printable(repeated), "this key twice in one object", "each key once", "keep one of the two values"
        )
    return unique


def _refuse_huge_integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= (number := int(digits)) < 2**64:
        found = f"a whole number of {len(digits.lstrip('-'))} digits"
        raise RecordRefused(RECORD, found, "at most 64 bits", "write it in quotes, as text")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise RecordRefused(RECORD, name, "a finite number or null", f"replace {name}, which JSON does not have")


def _explain(raw: bytes, error: orjson.JSONDecodeError) -> NoReturn:
    """Find out in plain words why orjson refused these bytes."""
    text = _decode(raw)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_refuse_huge_integer)
    except RecursionError:
        _refuse_depth()
    except json.JSONDecodeError:
        _refuse_syntax(text, error)
    _inspect(value)
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as cause:
        found = f"half a character, \\u{ord(cause.object[cause.start]):04x}"
        remedy = "repair the text at its source; it was cut inside an emoji or the like"
        raise RecordRefused(RECORD, found, "whole characters (such codes come in pairs)", remedy) from None
    found = f"a number out of range at character {error.pos + 1}"
    raise RecordRefused(RECORD, found, "a finite number", "write it in quotes, as text")


def _decode(raw: bytes) -> str:
    zero = raw.find(b"\x00")
    if zero >= 0:
        found = f"a zero byte at byte {zero + 1} of the record"
        remedy = "copy the file again; a power cut or an interrupted copy leaves zero bytes behind"
        raise RecordRefused(RECORD, found, "text in UTF-8", remedy)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as cause:
        found = f"byte 0x{raw[cause.start]:02x} at byte {cause.start + 1} of the record, which is not UTF-8"
        remedy = "save the file as UTF-8, for instance with: iconv -f latin1 -t utf-8"
        raise RecordRefused(RECORD, found, "text in UTF-8", remedy) from None


def _refuse_syntax(text: str, error: orjson.JSONDecodeError) -> NoReturn:
    stripped = text.strip()
    found = f"text that is not JSON ({error.msg} at character {error.pos + 1})"
    remedy = f"repair the text near {_near(text, error.pos)}"
    if stripped == "{":
        found, remedy = "only {", "write each record on one line, or all of them as one array in a .json file"
    elif stripped in ("[", "]"):
        found, remedy = f"only {stripped}", _NAME_IT_JSON
    elif stripped.endswith(",") and _is_json(stripped[:-1]):
        found, remedy = "a comma after the object", f"remove it; {_NAME_IT_JSON}"
    elif stripped.startswith("{'"):
        found, remedy = "single quotes", 'write "double quotes"; Python\'s json.dumps does it'
    elif (end := _end_of_first_value(stripped)) is not None:
        found = f"more after the end of the object, at character {end + 1}: {_near(stripped, end)}"
        remedy = "put each record on a line of its own"
    raise RecordRefused(RECORD, found, _ONE_OBJECT, remedy)


def _near(text: str, position: int) -> str:
    return f'"{printable(text[max(0, position - 15) : position + 15])}"'


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _end_of_first_value(text: str) -> int | None:
    """Return where the first JSON value of `text` ends, when one is whole and something follows it."""
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    while text[end : end + 1].isspace():
        end += 1
    return end if end < len(text) else None
