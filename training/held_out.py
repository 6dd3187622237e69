"""Records that are kept for evaluation: never trained, by any later file either, and shown being answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

import durable
from chat_template import ChatTemplate, Message
from config import EvaluationConfig, Paths
from intake.formats import Record

if TYPE_CHECKING:  # records are kept without torch; only showing them needs what generates answers
    from evaluation.generation import Answer, Generator


def held_out_keys(paths: Paths) -> frozenset[bytes]:
    """Return the keys of the records that any file so far has held out."""
    return frozenset(record.key() for file in paths.held_out.glob("*.jsonl") for record in _read(file))


def held_out_files(paths: Paths) -> list[Path]:
    """Return the files of held-out records, one of each job so far, in the order of the jobs."""
    return sorted(paths.held_out.glob("*.jsonl"))


def keep_held_out(paths: Paths, job_id: str) -> None:
    """Copy the held-out records of a run to where they stay when the run is removed; safe to repeat."""
    source = paths.run(job_id).held_out_records
    if source.exists():
        durable.copy_once(source, paths.held_out / f"{job_id}.jsonl")


@dataclass(frozen=True, slots=True)
class AnsweredExample:
    """A held-out prompt, the answer expected and the answer given."""

    example_id: str
    """Hash of the whole record: the same in every run."""
    system_prompt: str | None
    prompt: str
    golden: str
    golden_tokens: int
    answer: str
    answer_tokens: int
    matches: bool
    """Both are the same but for white space around them."""
    loss: float | None
    """Nats per trained token of the record, as the trainer reckons; None where no row of it is left."""
    error: str | None
    """Why there is no whole answer."""


class HeldOutExamples:
    """The first conversations of a run's held-out file, each asked up to its last answer."""

    def __init__(
        self, records: Path, generator: Generator, template: ChatTemplate, config: EvaluationConfig
    ) -> None:
        self._generator = generator
        self._config = config
        self._records = list(islice(_answered(records), config.sample_prompts))
        self._golden_tokens = [
            len(template.tokenizer.encode(_golden(record), add_special_tokens=False).ids)
            for record in self._records
        ]

    @property
    def lines(self) -> frozenset[int]:
        """The lines of the file they come from."""
        return frozenset(record.line for record in self._records)

    def answer(self, losses: Mapping[int, float]) -> list[AnsweredExample]:
        """Answer every prompt; `losses` are those of the records, by their line."""
        if not self._records:
            return []
        # An answer twice as long as the right one is wrong; what would follow only costs time.
        limit = min(self._config.max_new_tokens, 2 * max(self._golden_tokens) + 16)
        answers = self._generator.generate(
            [record.messages[:-1] for record in self._records], max_new_tokens=limit
        )
        return [
            self._compare(record, tokens, answer, losses.get(record.line))
            for record, tokens, answer in zip(self._records, self._golden_tokens, answers, strict=True)
        ]

    def _compare(
        self, record: Record, golden_tokens: int, answer: Answer, loss: float | None
    ) -> AnsweredExample:
        first, prompt = record.messages[0], record.messages[-2]
        limit = self._config.max_generation_seconds
        return AnsweredExample(
            example_id=record.key().hex(),
            system_prompt=first["content"] if first["role"] == "system" else None,
            prompt=prompt["content"],
            golden=_golden(record),
            golden_tokens=golden_tokens,
            answer=answer.text,
            answer_tokens=answer.tokens,
            matches=answer.text.strip() == _golden(record).strip(),
            loss=loss,
            error=f"cut off after {limit:g} s" if answer.finish_reason == "time" else None,
        )


def answered_conversations(records: Path) -> list[list[Message]]:
    """Return the conversations that end with an answer in words, without tools."""
    return [list(record.messages) for record in _answered(records)]


def _golden(record: Record) -> str:
    return str(record.messages[-1]["content"])


def _answered(records: Path) -> list[Record]:
    return [
        record
        for record in _read(records)
        if record.kind == "chat"
        and record.tools is None
        and len(record.messages) > 1
        and record.messages[-1]["role"] == "assistant"
        and not any(message.get("tool_calls") for message in record.messages)
    ]


def _read(file: Path) -> list[Record]:
    if not file.exists():
        return []
    with open(file, "rb") as lines:
        return [Record.from_json(orjson.loads(line)) for line in lines]
