"""Records become token counts, a batch at a time, in a thread of their own.

Tokenising runs outside Python's lock: while one batch is tokenised, the next ones are read and parsed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from chat_template import ChatTemplate, Layout
from errors import RecordRefused
from intake.candidates import Candidate
from intake.formats import Record

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 2048
BATCHES_AHEAD = 2


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
    pending: deque[tuple[list[Candidate], Future[list[Measure | RecordRefused]]]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as tokeniser:
        for batch in _batches(candidates):
            pending.append((batch, tokeniser.submit(_measure_batch, batch, template)))
            if len(pending) > BATCHES_AHEAD:
                done, measures = pending.popleft()
                yield done, measures.result()
        for done, measures in pending:
            yield done, measures.result()


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


def _measure_batch(batch: list[Candidate], template: ChatTemplate) -> list[Measure | RecordRefused]:
    conversations = []
    texts = []
    for candidate in batch:
        match candidate.record:
            case Record(kind="chat", messages=messages, tools=tools):
                conversations.append((messages, tools))
            case Record(kind="preference", prompt=prompt, chosen=chosen, rejected=rejected):
                conversations += [([*prompt, *chosen], None), ([*prompt, *rejected], None)]
            case Record(text=text):
                texts.append(text)
    # All records of a file are of one kind, so one of the two is empty.
    layouts = iter([*template.measure_messages_batch(conversations), *_measure_texts(texts, template)])
    return [_measure(candidate, layouts) for candidate in batch]


def _measure_texts(texts: list[str], template: ChatTemplate) -> list[Layout]:
    return [Layout(len(text.input_ids), text.spans) for text in template.encode_text_batch(texts)]


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
