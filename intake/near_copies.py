"""Which records nearly are one that is held out: other case, spaces or punctuation, or a tenth of its words.

Words count by how rare they are. Records made from one template share most of their words and yet are
different records; what makes each of them itself are the words that few others have, and a copy has those
too. How rare a word is, is judged beside the held-out records of the same file and a sample of the new one,
so that each template is known for one wherever its records are.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from intake.word_probes import WordProbes

PROBES = 12
"""At most so many of a record's rarest words are looked for in every new record."""
_WORDLESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts without spaces between words: each character counts as a word."""
_WORD = re.compile(rf"[{_WORDLESS}]|[^\W_{_WORDLESS}]+")
_DASHES_AND_QUOTES = re.compile(rb"\xe2\x80[\x90-\xa7]")
"""U+2010 to U+2027, which much of English text has too."""
_PLAIN = bytes(byte if byte > 127 or chr(byte).isalnum() else 32 for byte in range(256)).lower()
"""Makes ASCII letters small and blanks of all other ASCII but digits."""
_REMEMBERED_WORDS = 1 << 14
_ESCAPES = ((b"\\n", b"  "), (b"\\t", b"  "), (b"\\r", b"  "))
_FRAME = frozenset(
    [
        "line",
        "messages",
        "role",
        "content",
        "user",
        "assistant",
        "system",
        "text",
        "prompt",
        "chosen",
        "rejected",
    ]
)
"""Words that nearly every stored record has, since it is JSON."""


@dataclass(frozen=True, slots=True)
class Match:
    """The held-out record that another one nearly is."""

    source: str
    """The job that holds it out."""
    line: int
    similarity: float
    """From 0 to 1: the share of the words that both have, the rare ones counting more."""


class _Family:
    """The held-out records of one file, and how often each word occurs in records of their kind."""

    def __init__(self, source: str, records: Sequence[list[str]], sample: Counter[str], sampled: int) -> None:
        self.source = source
        self._documents = Counter(word for words in records for word in set(words))
        self._sample = sample
        self._count = len(records) + sampled

    def weight(self, word: str, *, is_own: bool) -> float:
        """Return how much a word tells: the logarithm of how rare it is in the other records.

        `is_own` says that the word was counted once for the very record that is weighed.
        """
        found = self._documents[word] + self._sample[word] - is_own
        return math.log((self._count + 1 - is_own) / (found + 0.5))


@dataclass(frozen=True, slots=True)
class _HeldOut:
    family: _Family
    line: int
    content: bytes
    total: float
    """Weight of all its words."""
    needed: float
    """So much of the weight of its probes is in every copy."""


class NearCopies:
    """Held-out records of any number of files, ready to be compared with many others."""

    def __init__(self, similarity: float) -> None:
        """`similarity` is that from which on a record counts as a copy, from 0.5 to 1."""
        self._similarity = similarity
        self._held_out: list[_HeldOut] = []
        self._probes: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._sample: Counter[str] = Counter()
        self._sampled = 0

    def __len__(self) -> int:
        return len(self._held_out)

    def get_to_know(self, records: Iterable[bytes]) -> None:
        """Learn how common words are from a sample of what will be compared; before any `add`."""
        assert not self._held_out
        for record in records:
            self._sample.update(set(words_of(record)))
            self._sampled += 1

    def add_file(self, path: Path) -> None:
        """Add the held-out records of an earlier file, which is named after its job."""
        with open(path, "rb") as lines:
            self.add(path.stem, lines)

    def add(self, source: str, stored: Iterable[bytes]) -> None:
        """Add the held-out records of one file, as they are stored."""
        kept = [line_and_content(line) for line in stored]
        split = [words_of(content) for _, content in kept]
        family = _Family(source, split, self._sample, self._sampled)
        for (line, content), words in zip(kept, split, strict=True):
            self._add(family, line, content, set(words) - _FRAME)

    def _add(self, family: _Family, line: int, content: bytes, words: set[str]) -> None:
        if not words:
            return
        weights = {word: family.weight(word, is_own=True) for word in words}
        total = sum(weights.values())
        # A copy lacks at most 1 - similarity of the weight, so it has half of what weighs twice as much.
        enough = 2 * (1 - self._similarity) * total
        probes: list[str] = []
        weight = 0.0
        for word in sorted(words, key=lambda word: (-weights[word], word)):
            if probes and (weight >= enough or len(probes) == PROBES):
                break
            probes.append(word)
            weight += weights[word]
        number = len(self._held_out)
        self._held_out.append(_HeldOut(family, line, content, total, weight / 2))
        for word in probes:
            self._probes[word].append((number, weights[word]))

    def suspects(self, stored: Iterable[bytes]) -> Iterator[bytes]:
        """Yield those of many stored records, in their order, for which `find` is worth asking.

        A fifth of what `find` costs; it names a few too many and misses none.
        """
        probes = [
            (word.encode("utf-8"), number, weight)
            for word, known in self._probes.items()
            for number, weight in known
        ]
        if probes:
            needed = [held_out.needed for held_out in self._held_out]
            yield from WordProbes(probes, needed).suspects((line, _folded(line)) for line in stored)

    def find(self, content: bytes) -> Match | None:
        """Return the held-out record that this one is most like, if it is a copy of any."""
        words = words_of(content)
        hits = self._probes.keys() & words
        if not hits:
            return None
        found: dict[int, float] = defaultdict(float)
        for word in hits:
            for number, weight in self._probes[word]:
                found[number] += weight
        likely = [self._held_out[number] for number, weight in found.items() if self._may_be(number, weight)]
        distinct = set(words) - _FRAME if likely else set()
        matches = [
            Match(held_out.family.source, held_out.line, similarity)
            for held_out in likely
            if (similarity := _similarity(held_out, distinct)) >= self._similarity
        ]
        return max(matches, key=lambda match: match.similarity, default=None)

    def _may_be(self, number: int, weight: float) -> bool:
        return weight >= self._held_out[number].needed


def line_and_content(stored: bytes) -> tuple[int, bytes]:
    """Take a line of ``train.jsonl`` or ``held_out.jsonl`` apart: where it came from, and the rest."""
    line, _, content = stored.partition(b",")
    return int(line.rpartition(b":")[2]), content


def words_of(content: bytes) -> list[str]:
    """Return the words of a stored record without case, punctuation and spaces, in their order."""
    return _folded(content).decode("utf-8").split()


def _folded(content: bytes) -> bytes:
    """Return the words of a stored record with blanks between them."""
    for escape, blank in _ESCAPES:
        content = content.replace(escape, blank)
    if not content.isascii():
        content = _DASHES_AND_QUOTES.sub(b" ", content)
    content = content.translate(_PLAIN)
    if content.isascii():
        return content
    return b" ".join([word if word.isascii() else _folded_word(word) for word in content.split()])


@lru_cache(_REMEMBERED_WORDS)
def _folded_word(word: bytes) -> bytes:
    """Return what a word that is not ASCII becomes: often itself, sometimes several."""
    return " ".join(_WORD.findall(unicodedata.normalize("NFKC", word.decode("utf-8")).casefold())).encode(
        "utf-8"
    )


def _similarity(held_out: _HeldOut, words: set[str]) -> float:
    """Return the smaller of two likenesses: of all words alike, and of words by their weight."""
    own = set(words_of(held_out.content)) - _FRAME
    shared = own & words
    family = held_out.family
    both = sum(family.weight(word, is_own=True) for word in shared)
    # A word that is nowhere else tells no more than an average one: it may be a slip of the pen.
    most = held_out.total / len(own)
    others = sum(min(most, family.weight(word, is_own=False)) for word in words - shared)
    plain = len(shared) / max(len(own), len(words))
    return min(plain, both / max(held_out.total, both + others)) if held_out.total else plain
