"""How often answers were right, by what was asked and by how long the expected answer is."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter

from pydantic import BaseModel, ConfigDict

PATTERNS = ("factual", "reasoning", "creative", "coding", "math", "other")
"""Rows that are always there; others join as they come."""
_STARTS = (100, 300, 500, 1000, 2000)
LENGTHS = ("0-100", "100-300", "300-500", "500-1000", "1000-2000", "2000+")
"""Columns: tokens of the expected answer, from the first number to below the second."""


class HeatmapCell(BaseModel):
    """The answers of one kind and length."""

    model_config = ConfigDict(frozen=True)

    seen: int
    em: float | None
    """Share of exact matches, from 0 to 1; null where none was seen."""


class Heatmap(BaseModel):
    """A table of cells, ``data[row][col]``."""

    model_config = ConfigDict(frozen=True)

    rows: tuple[str, ...]
    cols: tuple[str, ...]
    data: dict[str, dict[str, HeatmapCell]]


class PatternHeatmap:
    """Counts answers; those that did not come whole are not for it."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()
        self._right: Counter[tuple[str, str]] = Counter()

    def observe(self, pattern: str, tokens: int, matches: bool) -> None:
        """Take one answer; `tokens` are those of the expected one."""
        cell = pattern, LENGTHS[bisect_right(_STARTS, tokens)]
        self._seen[cell] += 1
        self._right[cell] += matches

    def table(self) -> Heatmap:
        """Return all cells, empty ones included."""
        rows = (*PATTERNS, *sorted({pattern for pattern, _ in self._seen} - set(PATTERNS)))
        data = {row: {length: self._cell((row, length)) for length in LENGTHS} for row in rows}
        return Heatmap(rows=rows, cols=LENGTHS, data=data)

    def _cell(self, cell: tuple[str, str]) -> HeatmapCell:
        seen = self._seen[cell]
        return HeatmapCell(seen=seen, em=self._right[cell] / seen if seen else None)
