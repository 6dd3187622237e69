"""What is right and wrong in a reply."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.syllo.generating import DIFFICULTIES, make_puzzles
from evaluation.syllo.puzzle import Contract, Puzzle
from evaluation.syllo.verification import Verification, verify
from evaluation.syllo.wording import answer_of, prompt_of

CONTRACTS: list[Contract] = ["brief", "full"]
PUZZLES = {
    contract: [
        puzzle
        for level in DIFFICULTIES
        for puzzle in make_puzzles(4, level, seed=9, split="evaluation", contract=contract)
    ]
    for contract in CONTRACTS
}
HARD = {contract: puzzles[-1] for contract, puzzles in PUZZLES.items()}
FINDINGS = ("parse_ok", "schema_ok", "all_words", "syllables_ok", "tiles_ok", "inventory_ok")


def failed(found: Verification) -> set[str]:
    return {name for name in FINDINGS if not getattr(found, name)}


def changed(puzzle: Puzzle, change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(answer_of(puzzle))
    change(document)
    return json.dumps(document)


def update_solution(fields: dict[str, Any], document: dict[str, Any]) -> None:
    document["solutions"][0].update(fields)


def update_inventory(fields: dict[str, Any], document: dict[str, Any]) -> None:
    document["inventory_check"].update(fields)


@pytest.mark.parametrize("contract", CONTRACTS)
def test_an_oracle_is_always_right_from_the_prompt_the_metadata_and_the_answer(contract: Contract) -> None:
    for puzzle in PUZZLES[contract]:
        reply = answer_of(puzzle)
        for source in (puzzle, prompt_of(puzzle), puzzle.metadata(), Puzzle.from_answer(reply)):
            found = verify(source, reply)
            assert found.exact and found.format_ok and not failed(found)
            assert (found.words_correct, found.words) == (len(puzzle.words), len(puzzle.words))


@pytest.mark.parametrize("contract", CONTRACTS)
def test_a_reply_with_swapped_tiles_fails_for_its_tiles_alone(contract: Contract) -> None:
    for puzzle in PUZZLES[contract]:
        other = {"syllables": [puzzle.words[0].label]}
        reply = changed(puzzle, partial(update_solution, other))
        assert failed(verify(puzzle, reply)) == {"tiles_ok"}
        assert not verify(puzzle, reply).exact


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d["solutions"][0].update(answer="WRONG"), {"all_words", "syllables_ok"}),
        (lambda d: d["solutions"][0]["syllables"].reverse(), {"syllables_ok"}),
        (lambda d: d["solutions"][0].update(ans_num=2), {"schema_ok", "all_words"}),
        (lambda d: d["solutions"][0].update(ans_num=True), {"schema_ok", "all_words"}),
        (lambda d: d["solutions"][0].update(note="sure"), {"schema_ok"}),
        (lambda d: d["solutions"].reverse(), {"schema_ok"}),
        (lambda d: d["inventory_check"].update(unused_tiles=["zz"]), {"inventory_ok"}),
        (lambda d: d["inventory_check"].update(unused_tiles=None), {"inventory_ok"}),
        (lambda d: d["inventory_check"]["unused_tiles"].reverse(), set()),
        (lambda d: d["inventory_check"].update(total=7), {"schema_ok"}),
        (lambda d: d.pop("inventory_check"), {"schema_ok", "inventory_ok"}),
        (lambda d: d.update(solutions=7), {"schema_ok", "all_words", "syllables_ok", "tiles_ok"}),
    ],
)
def test_each_thing_that_is_wrong_is_found_by_itself(
    contract: Contract, change: Callable[[dict[str, Any]], object], expected: set[str]
) -> None:
    assert failed(verify(HARD[contract], changed(HARD[contract], change))) == expected


def test_the_counts_of_the_full_contract_are_checked() -> None:
    puzzle = HARD["full"]
    for key, value in {"total_tiles": 1, "usage": {}, "used": {"zz": 1}}.items():
        reply = changed(puzzle, partial(update_inventory, {key: value}))
        assert failed(verify(puzzle, reply)) == {"inventory_ok"}


def test_a_tile_used_more_often_than_it_lies_there_is_found() -> None:
    puzzle = HARD["brief"]
    word = puzzle.words[0]
    twice = {"ans_num": 2, "syllables": list(word.syllables), "answer": word.label}
    reply = changed(puzzle, lambda document: document["solutions"].__setitem__(1, twice))
    assert "tiles_ok" in failed(verify(puzzle, reply))


def test_letters_may_be_small_and_tiles_other_than_ours_when_they_make_the_word() -> None:
    hidden = PUZZLES["brief"][0].words
    tiles = tuple(letter for word in hidden for letter in word.label)
    puzzle = Puzzle("x", "easy", hidden, tiles)
    spelled = [
        {"ans_num": number, "syllables": list(word.label), "answer": word.label}
        for number, word in enumerate(hidden, start=1)
    ]
    reply = json.dumps({"solutions": spelled, "inventory_check": {"unused_tiles": []}})
    assert verify(puzzle, reply).exact


def test_thoughts_and_fences_are_told_of_and_other_text_counts_as_extra() -> None:
    puzzle = HARD["brief"]
    answer = answer_of(puzzle)
    thought = verify(puzzle, f"<think>{{tiles}}</think>\n```json\n{answer}\n```")
    assert thought.exact and thought.had_thought and thought.had_fence and not thought.extra_text
    for reply in (f"Here it is: {answer}", f"{answer}\nDone.", f"{{tiles}} {answer}"):
        found = verify(puzzle, reply)
        assert found.all_words and found.extra_text and not (found.exact or found.format_ok)
    assert not verify(puzzle, f"<think>{answer}").parse_ok


def test_metadata_of_other_makers_has_no_bank_but_red_herrings() -> None:
    puzzle = HARD["full"]
    metadata = puzzle.metadata()
    del metadata["syllable_bank"], metadata["contract"]
    assert verify(metadata, answer_of(puzzle)).exact
    with pytest.raises(KeyError):
        verify({}, "")


@pytest.mark.parametrize(
    "reply",
    ["", "{", "{" * 5000, '{"a":' * 5000, "[" * 100_000, '{"solutions":' + "9" * 5000, "\ud800{}", "null"],
)
def test_hostile_replies_are_wrong_and_nothing_else(reply: str) -> None:
    assert not verify(HARD["full"], reply).exact


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "solutions",
                    "inventory_check",
                    "ans_num",
                    "syllables",
                    "answer",
                    "unused_tiles",
                    "used",
                    "usage",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(st.text() | JSON.map(json.dumps))
def test_no_reply_ever_raises(reply: str) -> None:
    for puzzle in HARD.values():
        found = verify(puzzle, reply)
        assert not found.exact
        assert 0 <= found.words_correct <= found.words
