from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.comparison import (
    holm,
    mcnemar_exact,
    noise_floor,
    paired_bootstrap,
)


def test_mcnemar_counts_only_the_records_on_which_the_models_differ() -> None:
    before = [True] * 6 + [False] * 1 + [True] * 50
    after = [False] * 6 + [True] * 1 + [True] * 50
    found = mcnemar_exact(before, after)
    # 2 · (C(7,0) + C(7,1)) / 2⁷
    assert (found.gained, found.lost) == (1, 6)
    assert found.p_value == pytest.approx(2 * 8 / 128)
    assert mcnemar_exact(before, after, "worse").p_value == pytest.approx(8 / 128)
    assert mcnemar_exact(before, after, "better").p_value == pytest.approx(127 / 128)


def test_mcnemar_of_equal_answers_is_certain_of_nothing() -> None:
    assert mcnemar_exact([True, False], [True, False]).p_value == 1.0


def test_losses_of_different_records_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not of the same records"):
        mcnemar_exact([True], [])
    with pytest.raises(ValueError, match="not of the same records"):
        paired_bootstrap([1.0], [1.0, 2.0])


def test_a_bootstrap_needs_finite_pairs() -> None:
    for losses in ([], [float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            paired_bootstrap(losses, losses)


def test_equal_differences_leave_no_doubt() -> None:
    found = paired_bootstrap([1.0, 2.0, 3.0], [1.5, 2.5, 3.5], alternative="worse", margin=0.25)
    assert found.mean == 0.5 and found.interval == (0.5, 0.5)
    assert found.p_value == 0.5**3
    assert paired_bootstrap([1.0, 2.0], [1.5, 2.5], alternative="worse", margin=0.5).p_value == 1.0


def test_one_record_proves_nothing_and_two_prove_little() -> None:
    (one, two) = (
        paired_bootstrap([0.0] * count, [0.05, 0.03][:count], alternative="worse", margin=0.02)
        for count in (1, 2)
    )
    assert one.p_value == 0.5
    # Student's t with one degree of freedom: a mean of 0.02 above the margin, a standard error of 0.01.
    assert two.p_value == pytest.approx(0.5 - math.atan(2) / math.pi)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_few_records_raise_a_false_alarm_no_more_often_than_many(count: int) -> None:
    generator = np.random.default_rng(5)
    alarms = sum(
        paired_bootstrap([0.0] * count, generator.normal(0, 1, count).tolist(), alternative="worse").p_value
        < 0.05
        for _ in range(300)
    )
    assert alarms / 300 <= 0.08


def test_a_large_difference_is_certain_beyond_what_resampling_can_tell() -> None:
    generator = np.random.default_rng(4)
    ruined = generator.normal(5.0, 1.0, 60).tolist()
    assert paired_bootstrap([0.0] * 60, ruined, alternative="worse", margin=0.02).p_value < 1e-15
    assert paired_bootstrap(ruined, [0.0] * 60, alternative="better").p_value < 1e-15
    assert paired_bootstrap([0.0] * 60, ruined).p_value < 1e-15


def test_the_interval_is_that_of_a_normal_mean() -> None:
    values = np.random.default_rng(3).normal(0.3, 1.0, 400)
    found = paired_bootstrap([0.0] * 400, values.tolist())
    half = 1.96 * values.std(ddof=1) / 20
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_the_same_seed_gives_the_same_interval() -> None:
    before, after = [1.0, 2.0, 4.0, 3.0], [1.1, 1.8, 4.4, 3.0]
    assert paired_bootstrap(before, after, seed=5) == paired_bootstrap(before, after, seed=5)


def test_models_that_are_alike_are_called_worse_about_as_often_as_the_confidence_says() -> None:
    generator = np.random.default_rng(0)
    alarms = sum(
        paired_bootstrap([0.0] * 30, generator.normal(0, 1, 30).tolist(), alternative="worse").p_value < 0.05
        for _ in range(300)
    )
    assert 0.02 <= alarms / 300 <= 0.09


def test_many_slices_together_raise_a_false_alarm_no_more_often_than_one() -> None:
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(150):
        slices = generator.normal(0, 1, (6, 30))
        tests = [paired_bootstrap([0.0] * 30, row.tolist(), alternative="worse").p_value for row in slices]
        alarms += min(holm(tests)) < 0.05
    assert alarms / 150 <= 0.1


def test_holm_multiplies_the_smallest_by_all_and_the_next_by_one_less() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_makes_a_finding_surer(p_values: list[float]) -> None:
    assert all(after >= before for before, after in zip(p_values, holm(p_values), strict=True))


def test_the_noise_floor_is_what_two_draws_of_the_same_records_differ_by() -> None:
    losses = np.random.default_rng(2).normal(2.0, 0.5, 100).tolist()
    # Two means of 100: standard error 0.5 · sqrt(2) / 10; one-sided 95 % is 1.645 of them.
    assert noise_floor(losses) == pytest.approx(1.645 * 0.5 * 2**0.5 / 10, rel=0.15)


def test_equal_losses_and_a_single_one_make_no_noise() -> None:
    assert noise_floor([1.5] * 10) == 0.0
    assert noise_floor([1.5]) == 0.0
