"""Averages, variance and trend match their closed forms, and no NaN comes out."""

from __future__ import annotations

import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.streaming_metrics import StreamingMetrics, StreamingSnapshot, loss_trend, recent_trend


def after(*losses: float) -> StreamingSnapshot:
    metrics = StreamingMetrics()
    for loss in losses:
        metrics.observe(loss)
    return metrics.snapshot()


def test_before_the_first_loss_nothing_is_known() -> None:
    empty = after()
    assert (empty.streaming_ce, empty.loss_variance, empty.token_entropy) == (None, None, None)
    assert (empty.loss_trend, empty.recent_trend) == ("insufficient_data", "insufficient_data")


def test_the_average_of_a_constant_is_that_constant() -> None:
    assert after(*[2.5] * 30).streaming_ce == pytest.approx(2.5)


def test_the_average_follows_a_step_as_its_closed_form_says() -> None:
    assert after(4.0, *[1.0] * 12).streaming_ce == pytest.approx(1.0 + 3.0 * 0.9**12)


def test_the_variance_is_that_of_the_last_fifty() -> None:
    assert after(*[99.0] * 10, *[1.0, 3.0] * 25).loss_variance == pytest.approx(1.0)
    assert after(1.0).loss_variance is None


def test_entropy_counts_every_token_once() -> None:
    metrics = StreamingMetrics()
    metrics.observe(1.0, entropy=math.log(8), tokens=30)
    metrics.observe(1.0, entropy=math.log(2), tokens=10)
    metrics.observe(1.0, entropy=math.nan, tokens=10)
    assert metrics.snapshot().token_entropy == pytest.approx(2.5 * math.log(2))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 1e200])
def test_one_broken_loss_is_counted_and_poisons_nothing(broken: float) -> None:
    clean, struck = after(1.0, 2.0, 3.0), after(1.0, broken, 2.0, 3.0, broken)
    assert struck.skipped == 2
    assert {**asdict(struck), "skipped": 0} == asdict(clean)


@pytest.mark.parametrize(
    ("newer", "word"), [(0.94, "improving"), (0.96, "stable"), (1.04, "stable"), (1.06, "degrading")]
)
def test_a_change_of_five_percent_is_a_trend(newer: float, word: str) -> None:
    assert after(*[1.0] * 10, *[newer] * 10).loss_trend == word
    assert after(*[1.0] * 9, *[newer] * 10).loss_trend == "insufficient_data"


@pytest.mark.parametrize(("newer", "word"), [(0.98, "improving"), (0.995, "stable"), (1.02, "degrading")])
def test_a_hundredth_of_a_nat_is_a_recent_trend(newer: float, word: str) -> None:
    assert recent_trend([9.0] * 5 + [1.0] * 5 + [newer] * 5) == word
    assert recent_trend([1.0, 5.0, newer]) == word
    assert recent_trend([1.0, newer]) == "insufficient_data"


def test_losses_of_zero_have_a_trend_too() -> None:
    assert loss_trend([0.0] * 20) == "stable"
    assert loss_trend([0.0] * 10 + [0.1] * 10) == "degrading"


@given(st.lists(st.floats(), max_size=80))
def test_nothing_that_is_not_a_number_ever_comes_out(losses: list[float]) -> None:
    values = asdict(after(*losses)).values()
    assert all(math.isfinite(value) for value in values if isinstance(value, float))
