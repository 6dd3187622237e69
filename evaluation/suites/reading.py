"""The bytes of a JSONL file become a suite, or the first line that cannot be used is named."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from errors import UsageError
from evaluation.graders import GraderSpec
from evaluation.items import Item

_TWO_FORMS = (
    'give "prompt" and "answer", or "messages" that end with the assistant\'s answer; '
    'besides these only "id", "level", "grader" and "metadata" are known'
)


@dataclass(frozen=True)
class Suite:
    """Items in a fixed order."""

    name: str
    title: str
    items: tuple[Item, ...]
    sha256: str
    """Of the bytes it was read from: two suites of one name need not be the same."""

    @property
    def levels(self) -> tuple[str | None, ...]:
        """The levels of its items, in the order in which they first come."""
        return tuple(dict.fromkeys(item.level for item in self.items))


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: str | None = Field(default=None, min_length=1, max_length=200)
    level: str | None = Field(default=None, min_length=1, max_length=60)
    grader: Any = None
    prompt: str | None = Field(default=None, min_length=1)
    answer: str | None = Field(default=None, min_length=1)
    messages: list[_Turn] | None = Field(default=None, min_length=2)
    metadata: Any = None

    @model_validator(mode="after")
    def _is_one_of_two_forms(self) -> _Line:
        has_pair = self.prompt is not None and self.answer is not None
        has_half = self.prompt is not None or self.answer is not None
        if (self.messages is None) != has_pair or has_half != has_pair:
            raise ValueError("neither a whole pair of prompt and answer nor messages alone")
        if self.messages is not None and self.messages[-1].role != "assistant":
            raise ValueError("the last message is not the assistant's")
        return self

    def turns(self) -> list[dict[str, Any]]:
        """Return the conversation, its answer last."""
        if self.messages is not None:
            return [turn.model_dump() for turn in self.messages]
        return [{"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


def read_suite(data: bytes, *, name: str, title: str, place: str) -> Suite:
    """Read the lines of `data`; empty ones are passed over.

    An item without an id is named by a hash of its conversation. Raises UsageError with `place` and the
    line where something is no item, where an id comes twice, and when there is no item at all.
    """
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, line in _numbered(data):
        item = _read_item(line, f"{place}:{number}")
        if item.item_id in lines:
            raise UsageError(
                f"{place}:{number}: found the id {item.item_id!r} of line {lines[item.item_id]} again, "
                "expected one of its own; remove the copy, or give it another id"
            )
        lines[item.item_id] = number
        items.append(item)
    if not items:
        raise UsageError(f"{place}: found no item, expected one a line; {_TWO_FORMS}")
    return Suite(name, title, tuple(items), hashlib.sha256(data).hexdigest())


def _numbered(data: bytes) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip())


def _read_item(raw: bytes, where: str) -> Item:
    try:
        line = _Line.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{where}: found no JSON ({error}), expected one object; {_TWO_FORMS}") from error
    except ValidationError as error:
        raise UsageError(f"{where}: {_explain(error)}; {_TWO_FORMS}") from error
    *question, answer = line.turns()
    return Item(
        item_id=line.id or _hash(line),
        messages=tuple(question),
        expected=answer["content"],
        grader=_grader(line.grader, where),
        level=line.level,
    )


def _grader(value: Any, where: str) -> GraderSpec:
    try:
        return GraderSpec.model_validate({} if value is None else {"name": value})
    except ValidationError as error:
        raise UsageError(f"{where}: grader: {_explain(error)}") from error


def _hash(line: _Line) -> str:
    return hashlib.sha256(orjson.dumps(line.turns(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def _explain(error: ValidationError) -> str:
    """Say what pydantic found first, in one clause."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "item"
    return f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}"
