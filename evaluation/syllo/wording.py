"""A puzzle as a model sees it: the prompt, and the one canonical answer."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson

from evaluation.syllo.puzzle import Puzzle

_NOTES = {
    "easy": "every tile is needed",
    "medium": "some tiles are needed by no word",
    "hard": "many tiles, some of them needed by no word",
}
_ALL_USED = "Every tile is used."
_SOME_LEFT = "The tiles listed as unused are decoys."


def prompt_of(puzzle: Puzzle) -> str:
    """Return the whole question."""
    slots = [
        f"{number}. {' '.join(['___'] * len(word.syllables))} — {word.clue}"
        for number, word in enumerate(puzzle.words, start=1)
    ]
    decoys = len(puzzle.decoys)
    left = (
        f"{decoys} of the tiles {'belongs' if decoys == 1 else 'belong'} to no word; list what is left over."
        if decoys
        else "Every tile belongs to a word; nothing is left over."
    )
    return "\n".join(
        [
            f"SYLLO puzzle {puzzle.puzzle_id}",
            f"Difficulty: {puzzle.level}",
            f"({_NOTES.get(puzzle.level, 'tiles are needed once each')})",
            "",
            "Find the hidden words: fill the blanks of each clue with syllable tiles from the bank.",
            "",
            "Rules:",
            f"- There are {len(puzzle.words)} words.",
            "- Each blank takes one tile; a word has as many syllables as it has blanks.",
            "- A tile may be used once; a syllable that stands in the bank twice may be used twice.",
            f"- {left}",
            "",
            "Word slots:",
            *slots,
            "",
            "Syllable bank (shuffled):",
            " | ".join(puzzle.bank),
            "",
            "Reply with one JSON object and nothing else:",
            '- "solutions": one object for each slot, in order, with "ans_num" (the number of the slot), '
            '"syllables" (its tiles in order) and "answer" (the word in capital letters)',
            *_inventory_lines(puzzle),
        ]
    )


def answer_of(puzzle: Puzzle) -> str:
    """Return the right answer: counts in the order of the bank, used tiles in that of their first use."""
    solutions = [
        {"ans_num": number, "syllables": list(word.syllables), "answer": word.label.upper()}
        for number, word in enumerate(puzzle.words, start=1)
    ]
    return orjson.dumps({"solutions": solutions, "inventory_check": _inventory(puzzle)}).decode()


def record_of(puzzle: Puzzle) -> dict[str, Any]:
    """Return a training record: the conversation, its grader, and what the puzzle was made of."""
    return {
        "messages": [
            {"role": "user", "content": prompt_of(puzzle)},
            {"role": "assistant", "content": answer_of(puzzle)},
        ],
        "grader": "syllo",
        "metadata": puzzle.metadata(),
    }


def _inventory(puzzle: Puzzle) -> dict[str, Any]:
    unused = list(puzzle.decoys)
    if puzzle.contract == "brief":
        return {"unused_tiles": unused}
    return {
        "total_tiles": len(puzzle.bank),
        "usage": dict(Counter(puzzle.bank)),
        "used": dict(Counter(tile for word in puzzle.words for tile in word.syllables)),
        "unused_tiles": unused,
        "status": _SOME_LEFT if unused else _ALL_USED,
    }


def _inventory_lines(puzzle: Puzzle) -> list[str]:
    if puzzle.contract == "brief":
        return ['- "inventory_check": an object with "unused_tiles" (the tiles left over, in bank order)']
    return [
        '- "inventory_check": an object with "total_tiles" (how many tiles the bank has), "usage" (copies of '
        'each tile in the bank, in bank order), "used" (copies of each tile used, by first use), '
        '"unused_tiles" (the tiles left over, in bank order) and "status" '
        f'("{_ALL_USED}" or "{_SOME_LEFT}")'
    ]
