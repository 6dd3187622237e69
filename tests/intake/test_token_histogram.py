"""Exact statistics of token counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intake.token_histogram import BINS, TokenCounter, TokenSummary

LENGTHS = st.lists(st.integers(1, 100_000), min_size=1, max_size=200)


def summary(lengths: list[int]) -> TokenSummary:
    counter = TokenCounter()
    for length in lengths:
        counter.add(length, length, 1)
    return counter.summary()


@given(LENGTHS)
def test_the_summary_is_that_of_the_sorted_lengths(lengths: list[int]) -> None:
    ordered = sorted(lengths)
    found = summary(lengths)
    assert (found.min, found.max) == (ordered[0], ordered[-1])
    assert found.median == ordered[math.ceil(0.5 * len(ordered)) - 1]
    assert found.p95 == ordered[math.ceil(0.95 * len(ordered)) - 1]
    assert (found.total, found.assistant) == (sum(lengths), len(lengths))


@given(LENGTHS)
def test_the_bins_hold_every_record_once_and_join_without_gaps(lengths: list[int]) -> None:
    bins = summary(lengths).histogram
    assert 1 <= len(bins) <= BINS + 1
    for entry in bins[:-1]:
        assert entry.records == sum(entry.start <= length < entry.end for length in lengths)
    assert sum(entry.records for entry in bins) == len(lengths)
    assert [entry.end for entry in bins[:-1]] == [entry.start for entry in bins[1:]]
    assert bins[0].start <= min(lengths) and max(lengths) < bins[-1].end


@pytest.mark.parametrize(("lengths", "starts"), [([5], [5]), (list(range(1, 101)), list(range(0, 100, 10)))])
def test_bins_begin_at_round_numbers(lengths: list[int], starts: list[int]) -> None:
    assert [entry.start for entry in summary(lengths).histogram] == starts


def test_nothing_counted_is_an_empty_summary() -> None:
    assert TokenCounter().summary() == TokenSummary()
