"""Copies of held-out records are found under other case, spaces, punctuation and some other words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import orjson
import pytest

from examples.make_tickets import TRAIN, make_records
from intake.near_copies import NearCopies, line_and_content, words_of

Chat = dict[str, list[dict[str, str]]]


def stored(record: Chat, line: int = 1) -> bytes:
    return orjson.dumps({"line": line, **record})


def content(record: Chat) -> bytes:
    return line_and_content(stored(record))[1]


def chat(question: str, answer: str) -> Chat:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def tickets(count: int) -> list[Chat]:
    return make_records(TRAIN, count, random.Random(3), set())


def copies_of(held_out: list[Chat], others: list[Chat], similarity: float = 0.8) -> NearCopies:
    copies = NearCopies(similarity)
    copies.get_to_know(content(record) for record in others)
    copies.add("000001-aaaaaaaa", [stored(record, line) for line, record in enumerate(held_out, 1)])
    return copies


def changed(record: Chat, change: Callable[[str], str]) -> Chat:
    return {
        "messages": [{**message, "content": change(message["content"])} for message in record["messages"]]
    }


def with_edits(record: Chat, draw: random.Random) -> Chat:
    """Change, leave out or add a tenth of the words, wherever they stand."""
    words = [message["content"].split() for message in record["messages"]]
    places = [(turn, at) for turn, some in enumerate(words) for at in range(len(some)) if turn]
    for turn, at in draw.sample(places, max(1, round(len(places) / 10))):
        words[turn][at] = draw.choice(("", "another", words[turn][at] + " besides"))
    return {
        "messages": [
            {**message, "content": " ".join(some)}
            for message, some in zip(record["messages"], words, strict=True)
        ]
    }


PLANTED: dict[str, Callable[[Chat], Chat]] = {
    "case": lambda record: changed(record, str.upper),
    "white space": lambda record: changed(record, lambda text: "\n\t " + "  ".join(text.split()) + " \n"),
    "punctuation": lambda record: changed(
        record, lambda text: text.replace('"', "'").replace(".", " !").replace(",", ";") + " …"
    ),
    "words": lambda record: with_edits(record, random.Random(json.dumps(record))),
}


@pytest.mark.parametrize("kind", list(PLANTED))
def test_planted_copies_of_templated_records_are_found(kind: str) -> None:
    held_out, others = tickets(400)[:100], tickets(400)[100:]
    copies = copies_of(held_out, others)
    found = [copies.find(content(PLANTED[kind](record))) for record in held_out]
    right = [match is not None and match.line == line for line, match in enumerate(found, 1)]
    assert sum(right) >= (97 if kind == "words" else 100)


def test_records_of_the_same_template_are_not_copies() -> None:
    held_out, others = tickets(1000)[:50], tickets(1000)[50:]
    copies = copies_of(held_out, others)
    assert sum(copies.find(content(record)) is not None for record in others) <= 0.005 * len(others)


def test_another_number_makes_another_question() -> None:
    sums = [chat(f"What is {one} + {one * 7}?", str(one * 8)) for one in range(100, 300)]
    copies = copies_of(sums[:20], sums[20:])
    assert all(copies.find(content(record)) is None for record in sums[20:])
    assert all(copies.find(content(record)) is not None for record in sums[:20])


def test_the_same_question_with_another_answer_is_a_copy() -> None:
    question = "Why did the old lighthouse keeper climb the tower again before midnight?"
    copies = copies_of([chat(question, "fog")], [])
    assert copies.find(content(chat(question, "storm"))) is not None
    assert copies.find(content(chat("Where do the herons of the northern marsh sleep?", "fog"))) is None


@pytest.mark.config_key("data.near_copy_similarity")
def test_a_higher_similarity_asks_for_more_common_words() -> None:
    record = chat("the quick brown fox jumps over one lazy dog near that river", "and sleeps")
    other = chat("the quick brown fox jumps over one tired cat near that river", "and sleeps")
    assert copies_of([record], [], 0.7).find(content(other)) is not None
    assert copies_of([record], [], 0.95).find(content(other)) is None


def test_the_match_names_the_job_the_line_and_how_alike_they_are() -> None:
    copies = copies_of(tickets(30)[:5], tickets(30)[5:])
    match = copies.find(content(tickets(30)[3]))
    assert match is not None
    assert (match.source, match.line) == ("000001-aaaaaaaa", 4)
    assert match.similarity == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Où est l'ÉCOLE ?", "où est l école"),
        ("ﬁne Straße", "FINE STRASSE"),
        ("图书馆在哪里?", "图书馆 在哪里"),
        ("one\ntwo\tthree", "ONE two   three!"),
        ("‘Ünder’—the “Ærø” bridge…", "'ünder' - the \"æRØ\" bridge"),
        ("x² ≠ ｘ2", "X2,ｘ２"),
    ],
)
def test_case_spaces_and_punctuation_of_any_script_do_not_count(one: str, other: str) -> None:
    assert words_of(orjson.dumps(one)) == words_of(orjson.dumps(other))


def test_nothing_is_a_copy_where_nothing_is_held_out() -> None:
    copies = copies_of([], tickets(20))
    assert len(copies) == 0
    assert copies.find(content(tickets(1)[0])) is None


@pytest.mark.parametrize("kind", list(PLANTED))
def test_a_first_look_at_many_records_misses_no_copy(kind: str) -> None:
    records = tickets(400)
    copies = copies_of(records[:100], records[100:])
    lines = [stored(PLANTED[kind](record), number) for number, record in enumerate(records)]
    suspects = list(copies.suspects(lines))
    copied = [line for line in lines if copies.find(line_and_content(line)[1]) is not None]
    assert copied == [line for line in suspects if line in copied]
    assert len(suspects) < 300


def test_a_first_look_finds_nothing_where_nothing_is_held_out() -> None:
    assert list(copies_of([], tickets(20)).suspects([stored(tickets(1)[0])])) == []
