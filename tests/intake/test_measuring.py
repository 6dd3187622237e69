"""Token counts in batches are those of the template one by one, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chat_template import ChatTemplate
from errors import RecordRefused
from intake import measuring
from intake.candidates import Candidate
from intake.formats import Record
from intake.measuring import Measure, measure_all
from intake.raw_records import RawRecord

PROBLEM = RecordRefused("record", "NaN", "a number", "replace it")


def talk(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if index % 2 else "user", "content": content}
        for index, content in enumerate(contents)
    ]


def candidate(record: Record | None) -> Candidate:
    source = RawRecord(1, {}, b"x" * 100, 1)
    return Candidate(source, record, problem=None if record else PROBLEM)


def measures(candidates: list[Candidate], template: ChatTemplate) -> list[Measure | RecordRefused]:
    return [measure for _, batch in measure_all(candidates, template) for measure in batch]


def test_a_chat_is_measured_as_it_is_encoded(template: ChatTemplate) -> None:
    messages = talk("What is two and two?", "Four.", "And one more?", "Five of them.")
    encoded = template.encode_messages(messages)
    (measure,) = measures([candidate(Record(1, "chat", messages))], template)
    length = len(encoded.input_ids)
    assert measure == Measure(length, length, encoded.assistant_tokens, encoded.spans[0][0])


def test_a_text_is_measured_with_its_end_token(template: ChatTemplate) -> None:
    (measure,) = measures([candidate(Record(1, "text", text="once upon a time"))], template)
    length = len(template.encode_text("once upon a time").input_ids)
    assert measure == Measure(length, length, length, 0)


def test_a_pair_is_as_long_as_its_longer_side_and_trains_only_its_answers(template: ChatTemplate) -> None:
    prompt = talk("What is two and two?", "Four.", "Sure?")
    chosen, rejected = (
        [{"role": "assistant", "content": text}] for text in ("Yes.", "No, it is five, I think.")
    )
    record = Record(1, "preference", prompt=prompt, chosen=chosen, rejected=rejected)
    (measure,) = measures([candidate(record)], template)
    sides = [template.encode_messages([*prompt, *answer]) for answer in (chosen, rejected)]
    assert isinstance(measure, Measure)
    assert measure.length == len(sides[1].input_ids)
    assert measure.total == sum(len(side.input_ids) for side in sides)
    assert measure.trained == sum(side.spans[1][1] - side.spans[1][0] for side in sides)
    assert measure.first_trained == len(template.encode_prompt(prompt))


def test_a_refused_record_keeps_its_place_and_its_refusal(template: ChatTemplate) -> None:
    good = candidate(Record(1, "chat", talk("hi", "hello")))
    found = measures([candidate(None), good, candidate(None)], template)
    assert [isinstance(measure, Measure) for measure in found] == [False, True, False]
    assert found[0] is PROBLEM


def test_batches_come_in_order_however_they_are_cut(
    template: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = [candidate(Record(number, "chat", talk("hi", "a" * number))) for number in range(1, 40)]
    whole = measures(candidates, template)
    monkeypatch.setattr(measuring, "BATCH_RECORDS", 4)
    batches = list(measure_all(candidates, template))
    assert [measure for _, batch in batches for measure in batch] == whole
    assert [one for batch, _ in batches for one in batch] == candidates
    assert [len(batch) for batch, _ in batches] == [4] * 9 + [3]
    monkeypatch.setattr(measuring, "BATCH_BYTES", 250)
    assert [len(batch) for batch, _ in measure_all(candidates, template)] == [3] * 13


def test_only_a_few_batches_are_read_ahead(template: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "BATCH_RECORDS", 1)
    read = []

    def endless() -> Iterator[Candidate]:
        while True:
            read.append(1)
            yield candidate(Record(1, "chat", talk("hi", "hello")))

    batches = measure_all(endless(), template)
    next(batches)
    assert len(read) == measuring.BATCHES_AHEAD + 1
    batches.close()
