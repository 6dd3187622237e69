"""Puzzles from a seed: the same seed gives the same puzzles, byte for byte, on every machine."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from errors import UsageError
from evaluation.syllo.puzzle import Contract, Hidden, Puzzle
from evaluation.syllo.words import Split, Word, all_words, is_for_evaluation, words_of

T = TypeVar("T")
Level = Literal["easy", "medium", "hard"]
_TRIES = 2000
"""Draws of one puzzle before giving up; a few dozen are usual for hard ones."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What puzzles of a level are made of; every range includes both ends."""

    words: tuple[int, int]
    syllables: tuple[int, int]
    max_scowl_size: int
    """Rarer words are left out."""
    max_overlap: float
    """Largest share of the words' tiles that are further copies of another."""
    decoys: tuple[int, int]


DIFFICULTIES: Mapping[Level, Difficulty] = {
    "easy": Difficulty((4, 5), (2, 3), 20, 0.0, (0, 0)),
    "medium": Difficulty((5, 6), (3, 4), 35, 0.3, (1, 2)),
    "hard": Difficulty((7, 8), (4, 6), 60, 0.6, (3, 5)),
}


class Draw:
    """Random choices that only rest on what Python promises never to change: the stream of ``random()``."""

    def __init__(self, seed: str) -> None:
        digest = hashlib.sha256(seed.encode()).digest()
        self._stream = random.Random(int.from_bytes(digest))

    def below(self, limit: int) -> int:
        """Return a whole number from 0 to `limit` - 1."""
        return int(self._stream.random() * limit)

    def within(self, ends: tuple[int, int]) -> int:
        """Return a whole number from one end to the other, both included."""
        return ends[0] + self.below(ends[1] - ends[0] + 1)

    def some(self, pool: Sequence[T], count: int) -> list[T]:
        """Return `count` different elements in random order."""
        chosen: dict[int, T] = {}
        while len(chosen) < count:
            at = self.below(len(pool))
            chosen.setdefault(at, pool[at])
        return list(chosen.values())

    def shuffled(self, things: Sequence[T]) -> list[T]:
        """Return all elements in random order."""
        result = list(things)
        for at in range(len(result) - 1, 0, -1):
            other = self.below(at + 1)
            result[at], result[other] = result[other], result[at]
        return result


def make_puzzles(
    count: int, level: Level, *, seed: int, split: Split = "training", contract: Contract = "brief"
) -> Iterator[Puzzle]:
    """Yield `count` puzzles; the first of them are the same whatever `count` is."""
    pool = pool_of(level, split)
    for number in range(count):
        yield _make(f"{split}-{level}-{seed}-{number + 1:04d}", level, pool, split, contract)


def pool_of(level: Level, split: Split) -> tuple[Word, ...]:
    """Return the words that puzzles of a level and a split are made of."""
    difficulty = DIFFICULTIES[level]
    fewest, most = difficulty.syllables
    return tuple(
        word
        for word in words_of(split)
        if fewest <= len(word.syllables) <= most and word.scowl_size <= difficulty.max_scowl_size
    )


def _make(name: str, level: Level, pool: tuple[Word, ...], split: Split, contract: Contract) -> Puzzle:
    difficulty = DIFFICULTIES[level]
    draw = Draw(name)
    tiles = sorted({tile for word in pool for tile in word.syllables})
    for _ in range(_TRIES):
        words = draw.some(pool, draw.within(difficulty.words))
        if overlap(words) > difficulty.max_overlap or _spoil_one_another(words):
            continue
        fit = [tile for tile in tiles if not any(tile in word.label for word in words)]
        decoys = draw.some(fit, draw.within(difficulty.decoys))
        bank = [tile for word in words for tile in word.syllables] + decoys
        if _has_another_word(words, Counter(bank), split):
            continue
        shuffled = draw.shuffled(bank)
        if not _shows_a_word(shuffled, words):
            hidden = tuple(Hidden(word.label, word.syllables, word.clue) for word in words)
            puzzle_id = hashlib.sha256(name.encode()).hexdigest()[:8]
            return Puzzle(puzzle_id, level, hidden, tuple(shuffled), contract)
    raise UsageError(f"{name}: found no puzzle in {_TRIES} draws; try another seed")


def overlap(words: Sequence[Word]) -> float:
    """Return the share of all tiles that are further copies of another tile, from 0 to 1."""
    tiles = Counter(tile for word in words for tile in word.syllables)
    return (tiles.total() - len(tiles)) / tiles.total()


def _spoil_one_another(words: Sequence[Word]) -> bool:
    """Tell whether a clue holds another answer, or two words begin alike enough to be mixed up."""
    labels = [word.label for word in words]
    if len({label[:5] for label in labels}) < len(labels):
        return True
    return any(label in word.clue for label in labels for word in words)


def _has_another_word(words: Sequence[Word], bank: Counter[str], split: Split) -> bool:
    """Tell whether the tiles make a listed word that is no answer though it fits a slot.

    In training none kept for evaluation may come of them, whatever its length.
    """
    lengths = {len(word.syllables) for word in words}
    answers = {word.label for word in words}
    return any(
        tiles <= bank.keys()
        and (len(word.syllables) in lengths or (split == "training" and is_kept))
        and word.label not in answers
        and Counter(word.syllables) <= bank
        for word, tiles, is_kept in _makeable()
    )


@cache
def _makeable() -> tuple[tuple[Word, frozenset[str], bool], ...]:
    """Return every listed word with its different tiles, and whether it is kept for evaluation."""
    return tuple((word, frozenset(word.syllables), is_for_evaluation(word.label)) for word in all_words())


def _shows_a_word(bank: Sequence[str], words: Sequence[Word]) -> bool:
    """Tell whether the tiles of a word lie side by side in their order."""
    shown = f" {' '.join(bank)} "
    return any(f" {' '.join(word.syllables)} " in shown for word in words)
