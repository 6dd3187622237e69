"""What is right and what is wrong in a reply to a puzzle, each thing by itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from evaluation.answer_text import without_thoughts
from evaluation.syllo.puzzle import INVENTORY_KEYS, Puzzle, left_over, read_prompt
from evaluation.syllo.words import all_words

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n?(.*?)(?:```|\Z)", re.DOTALL)
_STARTS = 16
"""Opening braces tried, so that a reply of nothing else takes no time."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The findings about one reply; where nothing could be parsed every other finding is false."""

    parse_ok: bool
    """It holds one JSON object."""
    schema_ok: bool
    """The object has every field of the contract, of the right kind, and the slots in order."""
    words_correct: int
    words: int
    all_words: bool
    syllables_ok: bool
    """In each solution the tiles, put together, make its answer."""
    tiles_ok: bool
    """Every tile is in the bank, and none is used more often than it lies there."""
    inventory_ok: bool
    """The count of tiles is right for the tiles used, or for the right solution."""
    extra_text: bool
    """Something stands beside the object; think blocks and code fences do not count."""
    had_thought: bool
    had_fence: bool

    @property
    def exact(self) -> bool:
        """Nothing at all is wrong."""
        flags = (self.schema_ok, self.all_words, self.syllables_ok, self.tiles_ok, self.inventory_ok)
        return all(flags) and not self.extra_text

    @property
    def format_ok(self) -> bool:
        """It can be read as the contract says, whatever the words are."""
        return self.schema_ok and not self.extra_text


def verify(source: Puzzle | str | Mapping[str, Any], reply: str) -> Verification:
    """Judge a reply to a puzzle, given as itself, as its prompt or as a record's metadata.

    No reply raises anything. Raises ValueError or KeyError when `source` is no puzzle.
    """
    puzzle = _puzzle(source)
    text, had_thought, had_fence = _bare(reply)
    document, extra_text = _payload(text)
    if document is None:
        nothing = dict.fromkeys(("schema_ok", "all_words", "syllables_ok", "tiles_ok", "inventory_ok"), False)
        return Verification(
            parse_ok=False,
            words_correct=0,
            words=len(puzzle.words),
            extra_text=bool(text),
            had_thought=had_thought,
            had_fence=had_fence,
            **nothing,
        )
    solutions = list(_solutions(document))
    given = dict(reversed([(number, answer) for number, answer, _ in solutions]))
    correct = sum(given.get(number) == word.label for number, word in enumerate(puzzle.words, start=1))
    used = Counter(tile for _, _, tiles in solutions for tile in tiles)
    return Verification(
        parse_ok=True,
        schema_ok=_has_schema(document, puzzle),
        words_correct=correct,
        words=len(puzzle.words),
        all_words=correct == len(puzzle.words),
        syllables_ok=bool(solutions) and all("".join(tiles) == answer for _, answer, tiles in solutions),
        tiles_ok=bool(solutions) and used <= Counter(puzzle.bank),
        inventory_ok=_is_inventory_right(document.get("inventory_check"), puzzle, used),
        extra_text=extra_text,
        had_thought=had_thought,
        had_fence=had_fence,
    )


def _puzzle(source: Puzzle | str | Mapping[str, Any]) -> Puzzle:
    if isinstance(source, Puzzle):
        return source
    if isinstance(source, str):
        labels = {(word.clue, len(word.syllables)): (word.label, word.syllables) for word in all_words()}
        return read_prompt(source, labels)
    return Puzzle.from_metadata(source)


def _bare(reply: str) -> tuple[str, bool, bool]:
    """Return a reply without thoughts and fences, and whether it had any."""
    text = without_thoughts(reply)
    bare = _FENCE.sub(lambda fenced: fenced[1], text)
    return bare.strip(), text != reply, bare != text


def _payload(text: str) -> tuple[dict[str, Any] | None, bool]:
    """Return the first JSON object in a text, and whether something stands beside it."""
    decoder = json.JSONDecoder()
    starts = (match.start() for match in re.finditer(r"\{", text))
    for start, _ in zip(starts, range(_STARTS), strict=False):
        try:
            document, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # no JSON, a number too long to read, or nesting without end
            continue
        return document, bool(text[:start].strip() or text[end:].strip())
    return None, bool(text)


def _solutions(document: Mapping[str, Any]) -> Iterator[tuple[int, str, list[str]]]:
    """Yield number, answer and tiles, in small letters, of what can be read as a solution."""
    found = document.get("solutions")
    for solution in found if isinstance(found, list) else []:
        if not isinstance(solution, dict):
            continue
        number, tiles, answer = solution.get("ans_num"), solution.get("syllables"), solution.get("answer")
        if _is_count(number) and _is_list_of_text(tiles) and isinstance(answer, str):
            yield number, answer.strip().lower(), [tile.strip().lower() for tile in tiles]


def _has_schema(document: Mapping[str, Any], puzzle: Puzzle) -> bool:
    inventory = document.get("inventory_check")
    if document.keys() != {"solutions", "inventory_check"} or not isinstance(inventory, dict):
        return False
    if inventory.keys() != set(INVENTORY_KEYS[puzzle.contract]):
        return False
    solutions = document["solutions"]
    if not isinstance(solutions, list) or not all(isinstance(one, dict) for one in solutions):
        return False
    if any(one.keys() != {"ans_num", "syllables", "answer"} for one in solutions):
        return False
    numbers = [number for number, _, _ in _solutions(document)]
    return numbers == list(range(1, len(puzzle.words) + 1)) == [one["ans_num"] for one in solutions]


def _is_inventory_right(inventory: Any, puzzle: Puzzle, used: Counter[str]) -> bool:
    """Tell whether every count agrees; the order in which tiles are listed does not matter."""
    if not isinstance(inventory, dict) or not _is_list_of_text(inventory.get("unused_tiles")):
        return False
    unused = Counter(tile.strip().lower() for tile in inventory["unused_tiles"])
    right = Counter(tile for word in puzzle.words for tile in word.syllables)
    agreeing = [tiles for tiles in (used, right) if Counter(left_over(puzzle.bank, tiles)) == unused]
    if puzzle.contract == "brief":
        return bool(agreeing)
    return (
        inventory.get("total_tiles") == len(puzzle.bank)
        and inventory.get("usage") == dict(Counter(puzzle.bank))
        and any(inventory.get("used") == dict(tiles) for tiles in agreeing)
    )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of_text(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
