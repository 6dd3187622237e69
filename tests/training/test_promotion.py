"""A candidate is held only when it is significantly worse; every decision carries its numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PromotionConfig
from training.promotion import decide

DEFAULTS = PromotionConfig()
losses = st.lists(st.floats(0, 20), min_size=1, max_size=30)


def noisy(mean: float, count: int, seed: int = 0) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, 0.3, count))


def test_equal_losses_are_promoted() -> None:
    decision = decide([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], DEFAULTS, seed=0)
    assert decision.decide == "promote"
    assert decision.mean_difference == 0.0
    assert decision.interval == (0.0, 0.0)


def test_a_clearly_better_candidate_is_promoted_with_the_numbers() -> None:
    decision = decide([2.0] * 50, noisy(0.5, 50), DEFAULTS, seed=0)
    assert decision.decide == "promote"
    assert decision.mean_difference == pytest.approx(-1.5, abs=0.1)
    assert "2.0000 → 0.5" in decision.reason


def test_a_clearly_worse_candidate_is_held_with_the_numbers() -> None:
    before = noisy(1.0, 50)
    decision = decide(before, [loss + 0.1 for loss in before], DEFAULTS, seed=0)
    assert decision.decide == "hold"
    assert "(+0.1000, 95 % interval +0.1000 to +0.1000)" in decision.reason
    assert "significantly worse than the tolerated +0.0200" in decision.reason


def test_a_slightly_worse_candidate_within_tolerance_is_promoted() -> None:
    before = noisy(1.0, 50)
    decision = decide(before, [loss + 0.015 for loss in before], DEFAULTS, seed=0)
    assert decision.decide == "promote"
    assert decision.mean_difference == pytest.approx(0.015)


def test_a_candidate_that_may_only_seem_worse_is_promoted() -> None:
    decision = decide([1.0] * 8, [0.5, 1.6, 0.6, 1.5, 1.4, 0.7, 1.5, 0.9], DEFAULTS, seed=0)
    assert decision.decide == "promote"
    assert decision.mean_difference is not None and decision.mean_difference > DEFAULTS.tolerance


def test_without_held_out_records_there_is_nothing_to_hold_it_for() -> None:
    decision = decide([], [], DEFAULTS, seed=0)
    assert (decision.decide, decision.reason) == ("promote", "no held-out records to test on")
    assert decision.interval is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_a_number_is_held(broken: float) -> None:
    decision = decide([1.0, 1.0], [0.1, broken], DEFAULTS, seed=0)
    assert decision.decide == "hold"
    assert "1 of 2 records" in decision.reason


def test_a_sound_candidate_replaces_a_broken_version() -> None:
    assert decide([math.nan, 1.0], [5.0, 5.0], DEFAULTS, seed=0).decide == "promote"


def test_a_single_record_decides_by_itself() -> None:
    assert decide([1.0], [9.0], DEFAULTS, seed=0).decide == "hold"
    assert decide([1.0], [0.9], DEFAULTS, seed=0).decide == "promote"


def test_losses_of_different_records_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not of the same records"):
        decide([1.0], [1.0, 2.0], DEFAULTS, seed=0)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        before = rng.normal(1.0, 0.3, 60)
        interval = decide(list(before), list(before + rng.normal(0.05, 0.2, 60)), DEFAULTS, trial).interval
        assert interval is not None
        covered += interval[0] <= 0.05 <= interval[1]
    assert 0.90 <= covered / 200 <= 0.99


@pytest.mark.config_key("promotion.tolerance")
def test_a_higher_tolerance_promotes_what_a_lower_one_holds() -> None:
    before = noisy(1.0, 50)
    after = [loss + 0.1 for loss in before]
    assert decide(before, after, PromotionConfig(tolerance=0.05), seed=0).decide == "hold"
    assert decide(before, after, PromotionConfig(tolerance=0.15), seed=0).decide == "promote"


@pytest.mark.config_key("promotion.confidence")
def test_a_higher_confidence_widens_the_interval_and_holds_less() -> None:
    before, after = [1.0] * 12, noisy(1.25, 12, seed=3)
    bold = decide(before, after, PromotionConfig(confidence=0.8), seed=0)
    careful = decide(before, after, PromotionConfig(confidence=0.9999), seed=0)
    assert (bold.decide, careful.decide) == ("hold", "promote")


@settings(deadline=None, max_examples=50)
@given(before=losses, seed=st.integers(0, 2**32 - 1))
def test_a_candidate_that_is_nowhere_worse_is_always_promoted(before: list[float], seed: int) -> None:
    assert decide(before, [0.9 * loss for loss in before], DEFAULTS, seed).decide == "promote"


@settings(deadline=None, max_examples=50)
@given(before=losses, seed=st.integers(0, 2**32 - 1))
def test_a_candidate_that_is_worse_everywhere_beyond_tolerance_is_always_held(
    before: list[float], seed: int
) -> None:
    assert decide(before, [loss + 0.021 for loss in before], DEFAULTS, seed).decide == "hold"


@settings(deadline=None, max_examples=50)
@given(pairs=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=1, max_size=30))
def test_the_same_losses_and_seed_always_give_the_same_decision(pairs: list[tuple[float, float]]) -> None:
    before, after = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    first = decide(before, after, DEFAULTS, seed=7)
    assert first == decide(before, after, DEFAULTS, seed=7)
    assert first.interval is not None and first.mean_difference is not None
    assert first.interval[0] - 1e-9 <= first.mean_difference <= first.interval[1] + 1e-9
