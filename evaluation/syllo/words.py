"""The word list that comes with trainbox, and which of its words are kept for evaluation."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from evaluation.syllo.suitability import mentions

Split = Literal["evaluation", "training"]

_FILE = Path(__file__).parent / "words.tsv"
_EVALUATION_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Word:
    """A word that may be hidden, with what leads to it."""

    label: str
    syllables: tuple[str, ...]
    part_of_speech: str
    scowl_size: int
    """How common it is: 10 for the most common words, 60 for rare ones."""
    uses: int
    """How often its meaning was found in a corpus tagged by hand."""
    clue: str


@cache
def all_words() -> tuple[Word, ...]:
    """Return every listed word, by the alphabet."""
    with open(_FILE, encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows)
        return tuple(
            Word(label, tuple(syllables.split("-")), part, int(size), int(uses), clue)
            for label, syllables, part, size, uses, clue in rows
        )


@cache
def words_of(split: Split) -> tuple[Word, ...]:
    """Return the words that puzzles of a split may ask for.

    A training word whose clue mentions a word kept for evaluation is in neither.
    """
    if split == "evaluation":
        return tuple(word for word in all_words() if is_for_evaluation(word.label))
    kept = frozenset(word.label for word in words_of("evaluation"))
    return tuple(word for word in all_words() if word.label not in kept and not mentions(word.clue, kept))


def is_for_evaluation(label: str) -> bool:
    """Tell whether a word is kept for evaluation: a hash decides, so that a longer list moves none."""
    draw = int.from_bytes(hashlib.sha256(f"syllo {label}".encode()).digest()[:4]) / 2**32
    return draw < _EVALUATION_SHARE
