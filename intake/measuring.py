"""Records become token counts, a batch at a time.

The tokenizer runs outside Python's lock, in threads of its own: while it has some batches in hand, the next
ones are read, parsed and judged here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from chat_template import ChatTemplate, Layout, Message
from errors import RecordRefused
from intake.candidates import Candidate
from intake.formats import Record

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 2048
BATCHES_AHEAD = 3
TOKENISERS = 2
"""Each uses all cores; while one hands over its results, the other keeps them busy."""


@dataclass(frozen=True, slots=True)
class Measure:
    """The tokens of one record; of a preference pair both sides count, and the worse one decides."""

    length: int
    """Tokens of the whole record, or of the longer side of a pair."""
    total: int
    trained: int
    first_trained: int
    """Where the first trained token stands; with fewer tokens kept there is nothing to learn."""


Measured = tuple[list[Candidate], list[Measure | RecordRefused]]


def measure_all(candidates: Iterable[Candidate], template: ChatTemplate) -> Generator[Measured, None, None]:
    """Yield the candidates in batches with their measures, in order; a refused one keeps its refusal.

    Close the generator to end early.
    """
    pending: deque[_Batch] = deque()
    with ThreadPoolExecutor(TOKENISERS, thread_name_prefix="tokenise") as tokenisers:
        for batch in _batches(candidates):
            pending.append(_Batch(batch, template, tokenisers))
            if len(pending) > BATCHES_AHEAD:
                yield pending.popleft().finish()
        while pending:
            yield pending.popleft().finish()


class _Batch:
    """A batch whose contents are being tokenised."""

    def __init__(
        self, candidates: list[Candidate], template: ChatTemplate, tokenisers: ThreadPoolExecutor
    ) -> None:
        self._candidates = candidates
        self._prepared = template.prepare_batch([talk for one in candidates for talk in _conversations(one)])
        self._lengths = tokenisers.submit(template.count_tokens, self._prepared.contents)
        texts = [one.record.text for one in candidates if one.record and one.record.kind == "text"]
        self._texts = tokenisers.submit(template.encode_text_batch, texts)

    def finish(self) -> Measured:
        """Wait for the tokenizer and return the measures."""
        # All records of a file are of one kind, so one of the two is empty.
        layouts = self._prepared.lay_out(self._lengths.result())
        layouts += [Layout(len(text.input_ids), text.spans) for text in self._texts.result()]
        remaining = iter(layouts)
        return self._candidates, [_measure(one, remaining) for one in self._candidates]


def _conversations(candidate: Candidate) -> list[tuple[Sequence[Message], list[Any] | None]]:
    """Return what of a record the template has to render: a chat, both sides of a pair, or nothing."""
    match candidate.record:
        case Record(kind="chat", messages=messages, tools=tools):
            return [(messages, tools)]
        case Record(kind="preference", prompt=prompt, chosen=chosen, rejected=rejected):
            return [([*prompt, *chosen], None), ([*prompt, *rejected], None)]
        case _:
            return []


def _batches(candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    batch: list[Candidate] = []
    size = 0
    for candidate in candidates:
        batch.append(candidate)
        size += len(candidate.source.raw)
        if size >= BATCH_BYTES or len(batch) >= BATCH_RECORDS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _measure(candidate: Candidate, layouts: Iterator[Layout | RecordRefused]) -> Measure | RecordRefused:
    record = candidate.record
    if record is None:
        assert candidate.problem is not None
        return candidate.problem
    if record.kind != "preference":
        return _measure_one(next(layouts))
    answers_before = sum(message["role"] == "assistant" for message in record.prompt)
    chosen = _measure_one(next(layouts), answers_before)
    rejected = _measure_one(next(layouts), answers_before)
    return _worse(chosen, rejected)


def _measure_one(layout: Layout | RecordRefused, answers_before: int = 0) -> Measure | RecordRefused:
    if isinstance(layout, RecordRefused):
        return layout
    spans = layout.spans[answers_before:]
    trained = sum([end - start for start, end in spans])
    return Measure(layout.length, layout.length, trained, spans[0][0])


def _worse(one: Measure | RecordRefused, other: Measure | RecordRefused) -> Measure | RecordRefused:
    if isinstance(one, RecordRefused):
        return one
    if isinstance(other, RecordRefused):
        return other
    return Measure(
        max(one.length, other.length),
        one.total + other.total,
        one.trained + other.trained,
        max(one.first_trained, other.first_trained),
    )
