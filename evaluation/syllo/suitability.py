"""Which words, and which clues for a word, may stand in a puzzle."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_SHARED_SHARE = 0.6
"""Two words that begin alike for this share of the shorter one count as having one stem."""


def is_blocked(text: str) -> bool:
    """Tell whether a word of `text` is on the block list, in its singular or plural."""
    exact, stems = _block_list()
    found = _words(text)
    return any(word in exact or word.removesuffix("s") in exact or word.startswith(stems) for word in found)


def tells(word: str, clue: str) -> bool:
    """Tell whether a clue gives its word away: it holds the word, its stem, or a part it is made of."""
    return any(_are_related(word, other) for other in _words(clue) if other not in function_words())


@cache
def function_words() -> frozenset[str]:
    """Return words that hold sentences together: every clue may have them, and none of them is asked for."""
    return frozenset((_HERE / "function_words.txt").read_text(encoding="utf-8").split())


def mentions(text: str, words: frozenset[str]) -> bool:
    """Tell whether one of `words` stands in `text`, as it is or in a plural."""
    found = set(_words(text))
    return not words.isdisjoint(found | {word.removesuffix("s") for word in found})


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@cache
def _block_list() -> tuple[frozenset[str], tuple[str, ...]]:
    """Return whole words, and beginnings of words, that a game for everyone does without."""
    lines = (_HERE / "blocked.txt").read_text(encoding="utf-8").split()
    stems = tuple(line.removesuffix("*") for line in lines if line.endswith("*"))
    return frozenset(lines) - {f"{stem}*" for stem in stems}, stems


def _are_related(word: str, other: str) -> bool:
    if len(other) >= 4 and (other in word or word in other):
        return True
    if len(other) == 3 and (word.startswith(other) or word.endswith(other)):
        return True
    shared = next(
        (at for at, (one, two) in enumerate(zip(word, other, strict=False)) if one != two),
        min(len(word), len(other)),
    )
    return shared >= max(4, _SHARED_SHARE * min(len(word), len(other)))
