"""The example is reproducible, balanced, and its held-out file shares no sentence with what is trained."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from examples import make_tickets
from examples.make_tickets import (
    HELD_OUT,
    HELD_OUT_FILE,
    PROBLEMS,
    TRAIN,
    TRAIN_FILE,
    URGENCIES,
    Wording,
    read_answer,
)


def tickets(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return the message and the parsed answer of each record."""
    records = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    return [(record[1]["content"], json.loads(record[2]["content"])) for record in records]


def sentences(path: Path) -> set[str]:
    return {sentence for text, _ in tickets(path) for sentence in re.split(r"(?<=[.?!]) ", text)}


def templates(wording: Wording) -> set[str]:
    return {
        *wording.frames,
        *itertools.chain.from_iterable(wording.clauses.values()),
        *itertools.chain.from_iterable(wording.urgencies.values()),
    }


@pytest.mark.parametrize("name", [TRAIN_FILE.name, HELD_OUT_FILE.name])
def test_the_committed_files_are_what_the_generator_writes(tmp_path: Path, name: str) -> None:
    make_tickets.write_files(tmp_path)
    assert (tmp_path / name).read_bytes() == (make_tickets.FOLDER / name).read_bytes()


def test_another_seed_gives_other_tickets(tmp_path: Path) -> None:
    make_tickets.write_files(tmp_path, seed=8)
    assert (tmp_path / TRAIN_FILE.name).read_bytes() != TRAIN_FILE.read_bytes()


def test_there_are_two_hundred_tickets_to_learn_and_forty_eight_to_be_asked() -> None:
    assert len(tickets(TRAIN_FILE)) == 200
    assert len(tickets(HELD_OUT_FILE)) == 48


def test_no_sentence_and_no_template_is_in_both_files() -> None:
    assert sentences(TRAIN_FILE).isdisjoint(sentences(HELD_OUT_FILE))
    assert templates(TRAIN).isdisjoint(templates(HELD_OUT))


def test_half_of_the_held_out_products_are_new_and_every_order_number_is() -> None:
    trained, asked = (
        {key: {answer[key] for _, answer in tickets(path)} for key in ("product", "order")}
        for path in (TRAIN_FILE, HELD_OUT_FILE)
    )
    assert asked["product"] & trained["product"] == set(make_tickets.SHARED_PRODUCTS)
    assert len(asked["product"]) == 2 * len(make_tickets.SHARED_PRODUCTS)
    assert trained["order"].isdisjoint(asked["order"])
    assert len(trained["order"]) == 200 and len(asked["order"]) == 48


@pytest.mark.parametrize("path", [TRAIN_FILE, HELD_OUT_FILE])
def test_every_answer_can_be_read_off_its_message(path: Path) -> None:
    for text, answer in tickets(path):
        assert list(answer) == ["product", "problem", "urgency", "order"]
        assert answer["product"] in text and answer["order"] in text
        assert answer["problem"] in PROBLEMS and answer["urgency"] in URGENCIES
        assert text[0].isupper() and "{" not in text


@pytest.mark.parametrize("path", [TRAIN_FILE, HELD_OUT_FILE])
def test_every_problem_and_urgency_is_equally_frequent(path: Path) -> None:
    for key, values in (("problem", PROBLEMS), ("urgency", URGENCIES)):
        counts = Counter(answer[key] for _, answer in tickets(path))
        assert set(counts) == set(values)
        assert max(counts.values()) - min(counts.values()) <= 3


def test_every_wording_is_used() -> None:
    text = " ".join(message for message, _ in tickets(TRAIN_FILE)).lower()
    for template in templates(TRAIN):
        for part in re.split(r"{\w+}", template.lower()):
            assert part in text


def test_a_right_answer_is_read_whatever_its_spacing() -> None:
    ticket = {"product": "kettle", "problem": "late", "urgency": "low", "order": "K1234"}
    assert read_answer(json.dumps(ticket, indent=2)) == ticket


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The kettle is late.",
        'Here it is: {"product": "kettle", "problem": "late", "urgency": "low", "order": "K1234"}',
        '{"product": "kettle", "problem": "late", "urgency": "low"}',
        '{"product": "kettle", "problem": "late", "urgency": "low", "order": "K1234", "note": "x"}',
        '{"product": "kettle", "problem": "slow", "urgency": "low", "order": "K1234"}',
        '{"product": "", "problem": "late", "urgency": "low", "order": "K1234"}',
        '{"product": "kettle", "problem": ["late"], "urgency": "low", "order": 1234}',
        "[" * 100_000,
    ],
)
def test_anything_but_strict_json_is_no_answer(text: str) -> None:
    assert read_answer(text) is None
