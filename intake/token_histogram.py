"""Exact token statistics of any number of records, from one counter of lengths."""

from __future__ import annotations

import math
from collections import Counter
from itertools import accumulate

from pydantic import BaseModel, ConfigDict

BINS = 10


class HistogramBin(BaseModel):
    """How many records have from `start` up to, but not including, `end` tokens."""

    model_config = ConfigDict(frozen=True)

    start: int
    end: int
    records: int


class TokenSummary(BaseModel):
    """Lengths in tokens, markup included, of all records that could be tokenised, too long ones too.

    A preference pair counts as long as its longer side; `total` and `assistant` count both sides.
    """

    model_config = ConfigDict(frozen=True)

    total: int = 0
    assistant: int = 0
    """Tokens that are trained: the assistant's words and the ends of its turns; all tokens of plain text."""
    min: int = 0
    median: int = 0
    p95: int = 0
    max: int = 0
    histogram: list[HistogramBin] = []


class TokenCounter:
    """Collects the lengths of records."""

    def __init__(self) -> None:
        self._lengths: Counter[int] = Counter()
        self._total = 0
        self._assistant = 0

    def add(self, length: int, total: int, assistant: int) -> None:
        """Count one record of `length` tokens."""
        self._lengths[length] += 1
        self._total += total
        self._assistant += assistant

    def summary(self) -> TokenSummary:
        """Return the statistics of all records added."""
        if not self._lengths:
            return TokenSummary()
        ordered = sorted(self._lengths.items())
        return TokenSummary(
            total=self._total,
            assistant=self._assistant,
            min=ordered[0][0],
            median=_quantile(ordered, 0.5),
            p95=_quantile(ordered, 0.95),
            max=ordered[-1][0],
            histogram=_histogram(ordered),
        )


def _quantile(ordered: list[tuple[int, int]], share: float) -> int:
    """Return the smallest length that at least `share` of the records do not exceed."""
    counts = list(accumulate(count for _, count in ordered))
    needed = math.ceil(share * counts[-1])
    return next(length for (length, _), reached in zip(ordered, counts, strict=True) if reached >= needed)


def _histogram(ordered: list[tuple[int, int]]) -> list[HistogramBin]:
    """Cut the lengths into about `BINS` round steps; the last one also holds the longest percent."""
    width = _round_step(_quantile(ordered, 0.99) / BINS)
    last = _quantile(ordered, 0.99) // width
    records = [0] * (last + 1)
    for length, count in ordered:
        records[min(length // width, last)] += count
    ends = [*range(width, (last + 1) * width, width), max((last + 1) * width, ordered[-1][0] + 1)]
    first = next(index for index, count in enumerate(records) if count)
    return [
        HistogramBin(start=index * width, end=ends[index], records=records[index])
        for index in range(first, last + 1)
    ]


def _round_step(step: float) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50 … that is not below `step`."""
    power = 10 ** max(0, math.floor(math.log10(max(step, 1))))
    return next(int(power * factor) for factor in (1, 2, 5, 10) if power * factor >= step)
