"""Long series cut down to what a chart can show, lows and highs kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

LEAST_POINTS = 8


def keep_extremes(columns: Sequence[tuple[Sequence[float], float]], max_points: int) -> list[int]:
    """Return the rows to keep of columns of equal length, at most `max_points` of them, ascending.

    Each column comes with its share of the points. It is cut into stretches of equal length, and of each the
    rows with its lowest and its highest value stay, so the lowest and the highest of all stay too, as do the
    first and the last row. What is not a number is passed over.
    """
    length = len(columns[0][0])
    if length <= max_points:
        return list(range(length))
    kept = {0, length - 1}
    for values, share in columns:
        stretches = max(1, math.floor(share * (max_points - 2) / 2))
        for index in range(stretches):
            start, end = length * index // stretches, length * (index + 1) // stretches
            kept.update(_extremes(values, start, end))
    return sorted(kept)


def _extremes(values: Sequence[float], start: int, end: int) -> Iterator[int]:
    """Yield the rows of the lowest and the highest number between `start` and `end`."""
    known = [row for row in range(start, end) if not math.isnan(values[row])]
    if known:
        yield min(known, key=values.__getitem__)
        yield max(known, key=values.__getitem__)
