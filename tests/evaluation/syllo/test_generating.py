"""Puzzles from a seed."""

from __future__ import annotations

from collections import Counter

import pytest

from errors import UsageError
from evaluation.syllo.generating import DIFFICULTIES, Draw, Level, make_puzzles, overlap
from evaluation.syllo.puzzle import Puzzle, read_prompt
from evaluation.syllo.suitability import mentions
from evaluation.syllo.wording import answer_of, prompt_of, record_of
from evaluation.syllo.words import Split, all_words, is_for_evaluation, words_of

LEVELS: list[Level] = list(DIFFICULTIES)
SOME = 12


def puzzles(level: Level, split: Split = "evaluation", seed: int = 5) -> list[Puzzle]:
    return list(make_puzzles(SOME, level, seed=seed, split=split))


def test_a_seed_gives_the_same_puzzles_however_many_are_asked_for() -> None:
    assert list(make_puzzles(3, "easy", seed=5, split="evaluation")) == puzzles("easy")[:3]
    assert puzzles("easy", seed=6) != puzzles("easy", seed=5)


def test_draws_come_from_the_stream_that_python_promises_to_keep() -> None:
    draw = Draw("seed")
    assert [draw.below(100) for _ in range(5)] == [4, 30, 97, 20, 2]
    assert "".join(draw.shuffled("abcdef")) == "decbfa"


@pytest.mark.parametrize("level", LEVELS)
def test_a_puzzle_keeps_to_its_level(level: Level) -> None:
    difficulty = DIFFICULTIES[level]
    listed = {word.label: word for word in all_words()}
    for puzzle in puzzles(level):
        words = [listed[hidden.label] for hidden in puzzle.words]
        assert difficulty.words[0] <= len(words) <= difficulty.words[1]
        assert difficulty.decoys[0] <= len(puzzle.decoys) <= difficulty.decoys[1]
        assert overlap(words) <= difficulty.max_overlap
        for word in words:
            assert difficulty.syllables[0] <= len(word.syllables) <= difficulty.syllables[1]
            assert word.scowl_size <= difficulty.max_scowl_size


@pytest.mark.parametrize("level", LEVELS)
def test_a_bank_has_one_solution_that_is_not_shown(level: Level) -> None:
    for puzzle in puzzles(level):
        tiles = [tile for word in puzzle.words for tile in word.syllables]
        assert Counter(puzzle.bank) == Counter([*tiles, *puzzle.decoys])
        answers = {word.label for word in puzzle.words}
        assert [decoy for decoy in puzzle.decoys if any(decoy in answer for answer in answers)] == []
        lengths = {len(word.syllables) for word in puzzle.words}
        others = [
            word.label
            for word in all_words()
            if len(word.syllables) in lengths and Counter(word.syllables) <= Counter(puzzle.bank)
        ]
        assert set(others) == answers
        shown = " ".join(puzzle.bank)
        assert [word.label for word in puzzle.words if f" {' '.join(word.syllables)} " in f" {shown} "] == []


@pytest.mark.parametrize("level", LEVELS)
def test_no_word_of_the_evaluation_occurs_in_a_training_puzzle_or_its_bank(level: Level) -> None:
    kept = words_of("evaluation")
    labels = frozenset(word.label for word in kept)
    for puzzle in puzzles(level, "training"):
        assert labels.isdisjoint(word.label for word in puzzle.words)
        assert not any(mentions(word.clue, labels) for word in puzzle.words)
        assert [word.label for word in kept if Counter(word.syllables) <= Counter(puzzle.bank)] == []
    assert all(is_for_evaluation(word.label) for puzzle in puzzles(level) for word in puzzle.words)


@pytest.mark.parametrize("level", LEVELS)
def test_a_prompt_tells_all_there_is_to_know_and_nothing_of_the_answers(level: Level) -> None:
    labels = {(word.clue, len(word.syllables)): (word.label, word.syllables) for word in all_words()}
    for contract in ("brief", "full"):
        for puzzle in make_puzzles(3, level, seed=2, contract=contract):
            prompt = prompt_of(puzzle)
            assert read_prompt(prompt, labels) == puzzle
            assert not mentions(prompt, frozenset(word.label for word in puzzle.words))
            assert Puzzle.from_metadata(record_of(puzzle)["metadata"]) == puzzle


def test_an_answer_tells_words_tiles_and_contract() -> None:
    for contract in ("brief", "full"):
        (puzzle,) = make_puzzles(1, "hard", seed=2, contract=contract)
        known = Puzzle.from_answer(answer_of(puzzle))
        assert [word.syllables for word in known.words] == [word.syllables for word in puzzle.words]
        assert (Counter(known.bank), known.contract) == (Counter(puzzle.bank), contract)
    for text in (
        "",
        "[]",
        '{"solutions": 5, "inventory_check": {}}',
        '{"solutions": [], "inventory_check": 1}',
    ):
        with pytest.raises(ValueError, match="not the right answer"):
            Puzzle.from_answer(text)


def test_a_text_that_is_no_prompt_is_refused() -> None:
    (puzzle,) = make_puzzles(1, "easy", seed=2)
    with pytest.raises(ValueError, match="not the prompt"):
        read_prompt("What is 2 + 3?", {})
    with pytest.raises(ValueError, match="no listed word has the clue"):
        read_prompt(prompt_of(puzzle), {})


def test_a_level_that_cannot_be_made_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.syllo.generating._TRIES", 0)
    with pytest.raises(UsageError, match="another seed"):
        list(make_puzzles(1, "easy", seed=1))
