"""Long series cut down: whatever the series, its lows and highs stay."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from serving.thinning import LEAST_POINTS, keep_extremes

VALUES = st.lists(st.floats(allow_infinity=False) | st.just(math.nan), min_size=0, max_size=300)


@given(VALUES, st.integers(LEAST_POINTS, 100))
def test_ends_and_extremes_stay_and_there_are_never_more_points_than_asked_for(
    values: list[float], max_points: int
) -> None:
    rows = keep_extremes([(values, 1.0)], max_points)
    assert rows == sorted(set(rows))
    assert len(rows) <= max_points
    known = [value for value in values if not math.isnan(value)]
    kept = [values[row] for row in rows if not math.isnan(values[row])]
    if known:
        assert (min(kept), max(kept)) == (min(known), max(known))
    if values:
        assert (rows[0], rows[-1]) == (0, len(values) - 1)


@given(st.integers(LEAST_POINTS, 1000), st.integers(0, 3000))
def test_each_column_keeps_its_own_spike(max_points: int, spike: int) -> None:
    flat, spiky = [0.0] * 3001, [1.0] * 3001
    flat[spike], spiky[3000 - spike] = 9.0, -9.0
    rows = keep_extremes([(flat, 0.5), (spiky, 0.5)], max_points)
    assert {spike, 3000 - spike} <= set(rows)
    assert len(rows) <= max_points


def test_a_short_series_stays_whole() -> None:
    assert keep_extremes([([3.0, 1.0, 2.0], 1.0)], LEAST_POINTS) == [0, 1, 2]
