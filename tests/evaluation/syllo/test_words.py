"""The list of words that comes with trainbox, and its split."""

from __future__ import annotations

from pathlib import Path

import pytest

import evaluation.syllo
from evaluation.syllo.suitability import function_words, is_blocked, mentions, tells
from evaluation.syllo.words import all_words, words_of


def test_every_listed_word_is_its_syllables_and_has_a_clue_that_does_not_tell_it() -> None:
    words = all_words()
    assert len({word.label for word in words}) == len({word.clue for word in words}) == len(words) > 9000
    assert [word.label for word in words if "".join(word.syllables) != word.label] == []
    assert [word.label for word in words if tells(word.label, word.clue)] == []
    assert [word.label for word in words if is_blocked(word.label) or is_blocked(word.clue)] == []
    assert function_words().isdisjoint(word.label for word in words)


def test_no_word_kept_for_evaluation_is_asked_for_or_mentioned_in_training() -> None:
    kept = frozenset(word.label for word in words_of("evaluation"))
    training = words_of("training")
    assert len(kept) > 2000 and len(training) > 4000
    assert kept.isdisjoint(word.label for word in training)
    assert [word.label for word in training if mentions(word.clue, kept)] == []


@pytest.mark.parametrize(
    ("word", "clue"),
    [
        ("animal", "any animal of a farm"),
        ("national", "concerned with a nation"),
        ("teapot", "a pot with a spout"),
        ("computer", "a machine that computes"),
        ("understand", "stand for"),
    ],
)
def test_a_clue_that_gives_its_word_away_is_found(word: str, clue: str) -> None:
    assert tells(word, clue)
    assert not tells(word, "in the middle of the sea")


def test_blocked_words_are_found_in_any_form_and_innocent_ones_pass() -> None:
    assert is_blocked("Murderers") and is_blocked("a gun") and is_blocked("two guns")
    assert not is_blocked("a gunwale beside the heroine")


def test_the_licences_of_all_sources_lie_beside_the_list() -> None:
    folder = Path(str(evaluation.syllo.__file__)).parent
    text = (folder / "LICENSES.txt").read_text(encoding="utf-8")
    for owner in ("Princeton University", "Carnegie Mellon University", "Kevin Atkinson", "TeX Users Group"):
        assert owner in text
