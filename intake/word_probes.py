"""Which of many records share telling words with known ones: a quick first look, in large pieces.

Words are compared by a number made from their first and last bytes and their length. Different words may get
the same number, so a record may be named in vain; none is ever missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 1 << 18
"""So much text is looked at together: enough to be quick, little enough for the processor's cache."""
_EDGE = b" " * 8
_MAP_BITS = 20
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93)

Numbers = NDArray[np.uint64]
Places = NDArray[np.intp]


class WordProbes:
    """Words that tell known records, and how much of a known record's weight a look-alike has at least."""

    def __init__(self, probes: Sequence[tuple[bytes, int, float]], needed: Sequence[float]) -> None:
        """Each probe is a word, the number of a known record and the word's weight there.

        `needed` is the weight of its probes that each known record asks for.
        """
        numbers, _ = _number_words(b" ".join(word for word, _, _ in probes))
        order = np.argsort(numbers, kind="stable")
        self._numbers = numbers[order]
        self._known = np.array([known for _, known, _ in probes], np.intp)[order]
        self._weights = np.array([weight for _, _, weight in probes], np.float64)[order]
        self._needed = np.array(needed, np.float64) * (1 - 1e-9)
        self._map = np.zeros(1 << _MAP_BITS, np.bool_)
        self._map[_place(self._numbers)] = True

    def suspects(self, records: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
        """Yield those that may be like a known one, in their order.

        Each of the records comes with its words: in lower case, with blanks between them.
        """
        names: list[bytes] = []
        words: list[bytes] = []
        size = 0
        for name, own in records:
            names.append(name)
            words.append(own)
            size += len(own)
            if size >= PIECE_BYTES:
                yield from (names[number] for number in self._look_through(words))
                names, words, size = [], [], 0
        if names:
            yield from (names[number] for number in self._look_through(words))

    def _look_through(self, records: Sequence[bytes]) -> list[int]:
        numbers, starts = _number_words(b" ".join(records))
        seen = np.flatnonzero(self._map[_place(numbers)])
        first = np.searchsorted(self._numbers, numbers[seen], "left")
        counts = np.searchsorted(self._numbers, numbers[seen], "right") - first
        ends = np.cumsum([len(record) + 1 for record in records])
        record = np.repeat(np.searchsorted(ends, starts[seen], "right"), counts)
        before = np.repeat(np.cumsum(counts) - counts, counts)
        probe = np.arange(len(before)) - before + np.repeat(first, counts)
        # A word counts once, however often the record has it.
        record, probe = np.divmod(np.unique(record * len(self._numbers) + probe), len(self._numbers))
        pairs, own = np.unique(record * len(self._needed) + self._known[probe], return_inverse=True)
        weights = np.bincount(own, self._weights[probe], minlength=len(pairs))
        record, known = np.divmod(pairs, len(self._needed))
        found: list[int] = np.unique(record[weights >= self._needed[known]]).tolist()
        return found


def _number_words(text: bytes) -> tuple[Numbers, Places]:
    """Return the number of each word of a text and where the word begins."""
    padded = _EDGE + text + _EDGE
    is_word = np.frombuffer(padded, np.uint8) > ord(" ")
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    # Eight bytes from each place on, as one number; the first byte is the lowest.
    eights = np.ndarray(len(padded) - 7, np.dtype("<u8"), padded, strides=(1,))
    lengths = ends - starts
    surplus = (8 * np.maximum(8 - lengths, 0)).astype(np.uint64)
    head = (eights[starts] << surplus) * np.uint64(_FACTORS[0])
    tail = (eights[ends - 8] >> surplus) * np.uint64(_FACTORS[1])
    mixed = (head ^ (head >> np.uint64(29))) + (tail ^ (tail >> np.uint64(31))) + lengths.astype(np.uint64)
    return mixed * np.uint64(_FACTORS[2]), starts - len(_EDGE)


def _place(numbers: Numbers) -> Places:
    return (numbers >> np.uint64(64 - _MAP_BITS)).astype(np.intp)
