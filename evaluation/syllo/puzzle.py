"""One puzzle: hidden words with their clues, and the bank of tiles they are put together from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

Contract = Literal["brief", "full"]
"""What the reply says of the bank: the tiles left over, or every count as well."""

INVENTORY_KEYS: Mapping[Contract, tuple[str, ...]] = {
    "brief": ("unused_tiles",),
    "full": ("total_tiles", "usage", "used", "unused_tiles", "status"),
}


@dataclass(frozen=True, slots=True)
class Hidden:
    """A word to be found."""

    label: str
    syllables: tuple[str, ...]
    clue: str


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Hidden words in the order of their clues, and all tiles in the order they are shown in."""

    puzzle_id: str
    level: str
    words: tuple[Hidden, ...]
    bank: tuple[str, ...]
    contract: Contract = "brief"

    @property
    def decoys(self) -> tuple[str, ...]:
        """The tiles of no word, in the order of the bank."""
        return left_over(self.bank, Counter(tile for word in self.words for tile in word.syllables))

    def metadata(self) -> dict[str, Any]:
        """Return all there is to know, for a record that is kept."""
        return {
            "dataset": "syllo",
            "puzzle_id": self.puzzle_id,
            "difficulty": self.level,
            "contract": self.contract,
            "word_count": len(self.words),
            "syllable_bank": list(self.bank),
            "syllable_bank_size": len(self.bank),
            "red_herrings": list(self.decoys),
            "red_herring_count": len(self.decoys),
            "words": [
                {
                    "label": word.label,
                    "definition": word.clue,
                    "syllable_count": len(word.syllables),
                    "syllables": list(word.syllables),
                }
                for word in self.words
            ],
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Puzzle:
        """Return the puzzle that a record's metadata tells of; KeyError when something is missing.

        Without the bank itself it has the tiles of the words and then the red herrings.
        """
        words = tuple(
            Hidden(str(word["label"]).lower(), tuple(word["syllables"]), str(word["definition"]))
            for word in metadata["words"]
        )
        tiles = [tile for word in words for tile in word.syllables]
        return cls(
            puzzle_id=str(metadata["puzzle_id"]),
            level=str(metadata["difficulty"]),
            words=words,
            bank=tuple(metadata.get("syllable_bank") or [*tiles, *metadata["red_herrings"]]),
            contract=metadata.get("contract", "full"),
        )

    @classmethod
    def from_answer(cls, answer: str) -> Puzzle:
        """Return what a right answer tells of its puzzle: words and tiles, without clues.

        Raises ValueError when it is none.
        """
        try:
            document = orjson.loads(answer)
            inventory = document["inventory_check"]
            words = tuple(
                Hidden(str(solution["answer"]).lower(), tuple(map(str, solution["syllables"])), "")
                for solution in document["solutions"]
            )
            tiles = [tile for word in words for tile in word.syllables]
            bank = (*tiles, *map(str, inventory["unused_tiles"]))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"not the right answer of a SYLLO puzzle: {error!r}") from error
        return cls("", "", words, bank, "full" if "usage" in inventory else "brief")


def left_over(bank: tuple[str, ...], used: Counter[str]) -> tuple[str, ...]:
    """Return the tiles of a bank that are not used, in its order; of equal ones the first are used."""
    rest = Counter(used)
    over = []
    for tile in bank:
        if rest[tile] > 0:
            rest[tile] -= 1
        else:
            over.append(tile)
    return tuple(over)


def read_prompt(prompt: str, labels: Mapping[tuple[str, int], tuple[str, tuple[str, ...]]]) -> Puzzle:
    """Return the puzzle of a prompt; `labels` names the word of a clue and a number of syllables.

    Raises ValueError when the prompt is none of ours, or when a clue is not known.
    """
    title = re.search(r"^SYLLO puzzle (\S+)\nDifficulty: (\w+)$", prompt, re.M)
    bank = re.search(r"^Syllable bank \(shuffled\):\n(.+)$", prompt, re.M)
    slots = re.findall(r"^\d+\. ((?:___ ?)+) — (.+)$", prompt, re.M)
    if title is None or bank is None or not slots:
        raise ValueError("not the prompt of a SYLLO puzzle")
    words = []
    for blanks, clue in slots:
        found = labels.get((clue, len(blanks.split())))
        if found is None:
            raise ValueError(f"no listed word has the clue {clue!r}")
        words.append(Hidden(*found, clue))
    contract: Contract = "full" if '"usage"' in prompt else "brief"
    return Puzzle(title[1], title[2], tuple(words), tuple(bank[1].split(" | ")), contract)
