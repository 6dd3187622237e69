"""A curve of bounded length keeps its shape."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from monitoring.thinned_history import ThinnedHistory


@given(st.integers(1, 5000), st.integers(2, 50))
def test_it_is_bounded_evenly_spaced_and_ends_with_the_newest(count: int, limit: int) -> None:
    history = ThinnedHistory(limit)
    for step in range(count):
        history.add(step, float(step))
    steps = [step for step, _ in history.points()]
    assert steps[0] == 0
    assert steps[-1] == count - 1
    assert len(steps) <= 2 * limit + 1
    gaps = {later - earlier for earlier, later in pairwise(steps[:-1])}
    assert len(gaps) <= 1
    assert len(steps) >= min(count, limit)


def test_without_points_it_is_empty() -> None:
    assert ThinnedHistory().points() == ()
