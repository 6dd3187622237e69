"""A record of any known format becomes one of three shapes: a conversation, a text, or a preference pair.

What is said here is about one record's keys, roles and turns; bytes are `reading`'s affair, tokens and the
rest of the file `validation`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import orjson

from chat_template import Message
from errors import RecordRefused
from evaluation.graders import check_oracle, spec_of
from intake.display import describe, describe_keys
from intake.messages import (
    answered_by,
    as_turns,
    check_turns,
    parse_messages,
    parse_tools,
    require_text,
    unused_message_keys,
)
from intake.strict_json import RECORD

Format = Literal[
    "preference",
    "messages",
    "conversations",
    "alpaca",
    "prompt_completion",
    "prompt_response",
    "question_answer",
    "text",
]
Kind = Literal["chat", "text", "preference"]

# In order of precedence: a record is of the first format whose keys it all has.
SIGNATURES: dict[Format, tuple[str, ...]] = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "prompt_response": ("prompt", "response"),
    "question_answer": ("question", "answer"),
    "text": ("text",),
}
assert tuple(SIGNATURES) == get_args(Format)

_OPTIONAL: dict[Format, tuple[str, ...]] = {
    "preference": ("prompt",),
    "messages": ("tools", "grader"),
    "conversations": ("system", "tools", "grader"),
    "alpaca": ("input", "system", "grader"),
    "prompt_completion": ("system", "tools", "grader"),
    "prompt_response": ("system", "grader"),
    "question_answer": ("system", "grader"),
    "text": (),
}
KNOWN_KEYS: dict[Format, frozenset[str]] = {
    format: frozenset((*keys, *_OPTIONAL[format])) for format, keys in SIGNATURES.items()
}
_MEDIA_KEYS = ("images", "image", "audio", "audios", "video", "videos")


@dataclass(frozen=True, slots=True)
class Detection:
    """The format of a record, and by which of its keys it was known."""

    format: Format
    why: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record in its normal form; the fields of the other kinds stay empty."""

    line: int
    kind: Kind
    messages: Sequence[Message] = ()
    text: str = ""
    tools: list[Any] | None = None
    prompt: Sequence[Message] = ()
    chosen: Sequence[Message] = ()
    rejected: Sequence[Message] = ()
    grader: dict[str, Any] | None = None
    """How an answer to it is judged, as the record itself says; not part of what is trained."""

    @property
    def answer(self) -> str | None:
        """The answer that a model can be asked for: in words, at the end, and without tools; or None."""
        if self.kind != "chat" or self.tools is not None or len(self.messages) < 2:
            return None
        if any(message.get("tool_calls") for message in self.messages):
            return None
        last = self.messages[-1]
        return str(last["content"]) if last["role"] == "assistant" else None

    def content(self) -> dict[str, Any]:
        """Return what is trained, without the place it came from."""
        match self.kind:
            case "chat":
                content: dict[str, Any] = {"messages": self.messages}
                return content if self.tools is None else content | {"tools": self.tools}
            case "text":
                return {"text": self.text}
            case "preference":
                return {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}

    def to_json(self) -> dict[str, Any]:
        """Return the line of ``train.jsonl`` that `from_json` reads back."""
        grader = {} if self.grader is None else {"grader": self.grader}
        return {"line": self.line, **grader, **self.content()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Record:
        """Rebuild a record from a line of ``train.jsonl``."""
        kind: Kind = "chat" if "messages" in stored else "text" if "text" in stored else "preference"
        return cls(kind=kind, **stored)

    def key(self) -> bytes:
        """Return 16 bytes that are equal for records with equal content, wherever they came from."""
        return content_key(orjson.dumps(self.content()))


def content_key(content: bytes) -> bytes:
    """Return the key of a record from the JSON of its `Record.content`."""
    return hashlib.blake2b(content, digest_size=16).digest()


_DETECTIONS = [
    (frozenset(keys), Detection(format, f"it has {describe_keys(dict.fromkeys(keys))}"))
    for format, keys in SIGNATURES.items()
]


def detect_format(raw: dict[str, Any]) -> Detection:
    """Tell the format of a record from its keys; raise RecordRefused when it has those of none."""
    present = raw.keys()
    for keys, detection in _DETECTIONS:
        if keys <= present:
            return detection
    known = ", ".join("+".join(keys) for keys in SIGNATURES.values())
    found = describe(raw)
    raise RecordRefused(
        RECORD, found, f"the keys of a known format: {known}", "rename the keys to one of these"
    )


def kind_of(format: Format) -> Kind:
    """Return how records of `format` are trained."""
    match format:
        case "preference" | "text":
            return format
        case _:
            return "chat"


def normalise(raw: dict[str, Any], format: Format, line: int) -> Record:
    """Bring a record into its normal form; raise RecordRefused that names the field at fault."""
    _refuse_media(raw)
    return _NORMALISERS[format](raw, line)


def unused_keys(raw: dict[str, Any], format: Format) -> set[str]:
    """Return the keys of a record that are not read, those of its turns as ``messages[].weight``."""
    unused = raw.keys() - KNOWN_KEYS[format]
    for field in SIGNATURES[format]:
        if type(raw[field]) is list and (keys := unused_message_keys(raw[field])):
            unused |= {f"{field}[].{key}" for key in keys}
    return unused


def _refuse_media(raw: dict[str, Any]) -> None:
    for key in _MEDIA_KEYS:
        if raw.get(key):
            raise RecordRefused(
                key, describe(raw[key]), "text only", "this trainer learns from text; leave it out"
            )


def _from_messages(raw: dict[str, Any], line: int) -> Record:
    return _chat(line, parse_messages(raw["messages"], "messages"), raw)


def _from_conversations(raw: dict[str, Any], line: int) -> Record:
    messages = parse_messages(raw["conversations"], "conversations")
    return _chat(line, _system(raw) + messages, raw, "conversations")


def _from_alpaca(raw: dict[str, Any], line: int) -> Record:
    question = require_text(raw["instruction"], "instruction")
    if raw.get("input") not in (None, ""):
        question = f"{question}\n\n{require_text(raw['input'], 'input')}"
    answer = require_text(raw["output"], "output")
    return _judged(Record(line, "chat", [*_system(raw), *_exchange(question, answer)]), raw)


def _from_prompt_completion(raw: dict[str, Any], line: int) -> Record:
    prompt = as_turns(raw["prompt"], "prompt", "user")
    completion = as_turns(raw["completion"], "completion", "assistant")
    return _chat(line, _system(raw) + prompt + completion, raw, RECORD)


def _pair_of_texts(asked: str, answered: str) -> Callable[[dict[str, Any], int], Record]:
    def normalise_pair(raw: dict[str, Any], line: int) -> Record:
        question, answer = require_text(raw[asked], asked), require_text(raw[answered], answered)
        return _judged(Record(line, "chat", [*_system(raw), *_exchange(question, answer)]), raw)

    return normalise_pair


def _from_text(raw: dict[str, Any], line: int) -> Record:
    return Record(line, "text", text=require_text(raw["text"], "text"))


def _from_preference(raw: dict[str, Any], line: int) -> Record:
    if raw.get("tools"):
        raise RecordRefused("tools", describe(raw["tools"]), "a pair without tools", "leave the tools out")
    chosen = as_turns(raw["chosen"], "chosen", "assistant")
    rejected = as_turns(raw["rejected"], "rejected", "assistant")
    if raw.get("prompt") is None:
        prompt = _common_beginning(chosen, rejected)
        start = len(prompt)
        chosen, rejected = chosen[start:], rejected[start:]
    else:
        prompt = as_turns(raw["prompt"], "prompt", "user")
        chosen, rejected = answered_by(prompt, chosen, "chosen"), answered_by(prompt, rejected, "rejected")
    if chosen == rejected:
        remedy = "remove the pair; equal answers teach nothing"
        raise RecordRefused("rejected", "the same answer as chosen", "a worse answer than chosen", remedy)
    check_turns(prompt + chosen, "chosen")
    check_turns(prompt + rejected, "rejected")
    return Record(line, "preference", prompt=prompt, chosen=chosen, rejected=rejected)


def _common_beginning(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Return the turns that both answers share, up to where the assistant speaks differently."""
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    while shared and chosen[shared - 1]["role"] == "assistant":
        shared -= 1
    if shared == 0:
        raise RecordRefused(
            "prompt",
            "no prompt",
            "what both answers reply to",
            "add 'prompt', or begin both with the same turns",
        )
    return chosen[:shared]


def _chat(line: int, messages: list[Message], raw: dict[str, Any], field: str = "messages") -> Record:
    check_turns(messages, field)
    return _judged(Record(line, "chat", messages, tools=parse_tools(raw.get("tools"))), raw)


def _judged(record: Record, raw: dict[str, Any]) -> Record:
    """Add the grader that a raw record names; refuse one by which its own answer would be wrong."""
    if raw.get("grader") in (None, ""):
        return record
    spec = spec_of(raw["grader"])
    *_, question, answer = record.messages
    if answer["role"] != "assistant" or not answer["content"]:
        remedy = "end the record with the answer to judge by, or leave the grader out"
        raise RecordRefused("grader", "a grader where no answer comes last", "an answer in words", remedy)
    check_oracle(spec, answer["content"], question["content"])
    return replace(record, grader=spec.model_dump(exclude_defaults=True) | {"name": spec.name})


def _exchange(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _system(raw: dict[str, Any]) -> list[Message]:
    """Return the system message that a record holds beside its turns, if any."""
    if raw.get("system") in (None, ""):
        return []
    return [{"role": "system", "content": require_text(raw["system"], "system")}]


_NORMALISERS: dict[Format, Callable[[dict[str, Any], int], Record]] = {
    "preference": _from_preference,
    "messages": _from_messages,
    "conversations": _from_conversations,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt_completion,
    "prompt_response": _pair_of_texts("prompt", "response"),
    "question_answer": _pair_of_texts("question", "answer"),
    "text": _from_text,
}
