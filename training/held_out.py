"""Records that are kept for evaluation: never trained, by any later file either, and shown being answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

import durable
from chat_template import ChatTemplate, Message
from config import EvaluationConfig, Paths
from evaluation.graders import GraderSpec, choose, grade, spec_of
from evaluation.items import Examined, Item, Passage, enough_tokens
from intake.formats import Record

if TYPE_CHECKING:  # records are kept without torch; only showing them needs what generates answers
    from evaluation.generation import Answer, Generator


_EXACT = GraderSpec(name="exact")


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
    grader: str | None = None
    correct: bool | None = None
    """As that grader judges; None where there is no whole answer."""
    is_exact: bool | None = None
    """The same but for blanks, capitals, thoughts and a code fence; None where there is no whole answer."""


class HeldOutExamples:
    """The first conversations of a run's held-out file, each asked up to its last answer.

    A few of them are shown; further ones are only counted.
    """

    def __init__(
        self, records: Path, generator: Generator, template: ChatTemplate, config: EvaluationConfig
    ) -> None:
        self._generator = generator
        self._config = config
        answered = _answered(records)
        chosen, _ = _choose(answered)
        self._records = answered[: max(config.sample_prompts, config.fixed_eval_prompts)]
        self._graders = [_grader_of(record, chosen) for record in self._records]
        self._golden_tokens = [
            len(template.tokenizer.encode(_golden(record), add_special_tokens=False).ids)
            for record in self._records
        ]
        self._shown = range(min(config.sample_prompts, len(self._records)))

    @property
    def lines(self) -> frozenset[int]:
        """The lines of the file that those shown come from."""
        return frozenset(self._records[number].line for number in self._shown)

    def answer(self, losses: Mapping[int, float]) -> list[AnsweredExample]:
        """Answer those that are shown; `losses` are those of the records, by their line."""
        return self._ask(self._shown, losses)

    def further(self) -> list[range]:
        """Return the numbers of the further examples, batch by batch."""
        size = self._config.per_device_eval_batch_size
        numbers = range(len(self._shown), len(self._records))
        return [numbers[at : at + size] for at in range(0, len(numbers), size)]

    def answer_further(self, numbers: range, losses: Mapping[int, float]) -> list[AnsweredExample]:
        """Answer one batch of `further`."""
        return self._ask(numbers, losses)

    def _ask(self, numbers: range, losses: Mapping[int, float]) -> list[AnsweredExample]:
        if not numbers:
            return []
        longest = max(self._golden_tokens[number] for number in numbers)
        answers = self._generator.generate(
            [self._records[number].messages[:-1] for number in numbers],
            max_new_tokens=min(self._config.max_new_tokens, enough_tokens(longest)),
        )
        return [
            self._compare(number, answer, losses.get(self._records[number].line))
            for number, answer in zip(numbers, answers, strict=True)
        ]

    def _compare(self, number: int, answer: Answer, loss: float | None) -> AnsweredExample:
        record, spec = self._records[number], self._graders[number]
        first, prompt, golden = record.messages[0], record.messages[-2], _golden(record)
        is_whole = answer.finish_reason != "time"
        return AnsweredExample(
            example_id=record.key().hex(),
            system_prompt=first["content"] if first["role"] == "system" else None,
            prompt=prompt["content"],
            golden=golden,
            golden_tokens=self._golden_tokens[number],
            answer=answer.text,
            answer_tokens=answer.tokens,
            matches=answer.text.strip() == golden.strip(),
            loss=loss,
            error=None if is_whole else f"cut off after {self._config.max_generation_seconds:g} s",
            grader=spec.name,
            correct=grade(spec, golden, answer.text, prompt["content"]).correct if is_whole else None,
            is_exact=grade(_EXACT, golden, answer.text).correct if is_whole else None,
        )


def held_out_items(records: Path) -> list[Examined]:
    """Return all that a file held out: what a model can be asked, and else passages.

    It can be asked conversations that end with an answer in words. Each is judged by the grader that its
    record names, the others by `chosen_grader`.
    """
    found = _read(records)
    chosen, _ = _choose([record for record in found if record.answer is not None])
    return [_passage(record) if record.answer is None else _item(record, chosen) for record in found]


def chosen_grader(records: Path) -> tuple[GraderSpec, str]:
    """Return the grader of the records of a file that name none themselves, and why it is this one."""
    return _choose(_answered(records))


def answered_conversations(records: Path) -> list[list[Message]]:
    """Return the conversations that end with an answer in words, without tools."""
    return [list(record.messages) for record in _answered(records)]


def _item(record: Record, chosen: GraderSpec) -> Item:
    return Item(
        item_id=record.key().hex(),
        messages=record.messages[:-1],
        expected=_golden(record),
        grader=_grader_of(record, chosen),
    )


def _passage(record: Record) -> Passage:
    item_id = record.key().hex()
    match record.kind:
        case "text":
            return Passage(item_id, text=record.text)
        case "preference":
            return Passage(item_id, given=record.prompt, turns=record.chosen, rejected=record.rejected)
        case "chat":
            return Passage(item_id, turns=record.messages, tools=record.tools)


def _grader_of(record: Record, chosen: GraderSpec) -> GraderSpec:
    return chosen if record.grader is None else spec_of(record.grader)


def _choose(records: Sequence[Record]) -> tuple[GraderSpec, str]:
    return choose([_golden(record) for record in records if record.grader is None])


def _golden(record: Record) -> str:
    assert record.answer is not None
    return record.answer


def _answered(records: Path) -> list[Record]:
    return [record for record in _read(records) if record.answer is not None]


def _read(file: Path) -> list[Record]:
    if not file.exists():
        return []
    with open(file, "rb") as lines:
        return [Record.from_json(orjson.loads(line)) for line in lines]
