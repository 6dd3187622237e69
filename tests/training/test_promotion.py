"""A candidate is held only for a reason, and every reason carries its numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PromotionConfig
from evaluation.items import ItemResult
from training.promotion import (
    Decision,
    broken_losses,
    compare_losses,
    compare_results,
    compare_suites,
    compare_with_base,
    decide,
    held_out_change,
)
from training.version_report import SliceFacts

DEFAULTS = PromotionConfig()
OWN = SliceFacts(slice_id="000001-aaaaaaaa", kind="held_out", name="colours.jsonl", records=1)
SUITE = SliceFacts(slice_id="facts-0123456789ab", kind="suite", name="facts", records=1)
losses = st.lists(st.floats(0, 20), min_size=1, max_size=30)


def noisy(mean: float, count: int, seed: int = 0, spread: float = 0.3) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, spread, count))


def verdict(
    before: list[float], after: list[float], config: PromotionConfig = DEFAULTS, seed: int = 0
) -> Decision:
    """Decide on the losses of one slice alone."""
    change = held_out_change(before, after, config, seed)
    return decide(compare_losses(OWN, before, after, config, seed=seed), config, change=change)


def results(loss: float, *, said: Any = None, correct: Any = None, count: int = 30) -> list[ItemResult]:
    def at(values: Any, number: int) -> bool | None:
        return None if values is None else bool(number < values)

    return [
        ItemResult(
            item_id=f"item-{number}",
            grader="exact",
            expected="yes",
            loss_sum=loss,
            loss_tokens=1,
            says_expected=at(said, number),
            correct=at(correct, number),
        )
        for number in range(count)
    ]


def test_equal_losses_are_promoted() -> None:
    decision = verdict([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert decision.decide == "promote"
    assert (decision.mean_difference, decision.interval) == (0.0, (0.0, 0.0))
    assert decision.reasons == ()


def test_a_clearly_better_candidate_is_promoted_with_the_numbers() -> None:
    decision = verdict([2.0] * 50, noisy(0.5, 50))
    assert decision.decide == "promote"
    assert decision.mean_difference == pytest.approx(-1.5, abs=0.1)
    assert "2.0000 → 0.5" in decision.reason
    assert decision.tests[0].outcome == "better"


def test_a_clearly_worse_candidate_is_held_with_the_numbers() -> None:
    before = noisy(1.0, 50)
    decision = verdict(before, [loss + 0.5 for loss in before])
    assert decision.decide == "hold"
    assert "significantly worse on colours.jsonl: loss" in decision.reason
    assert "(+0.5000, 95 % interval +0.5000 to +0.5000)" in decision.reason
    assert len(decision.reasons) == 1


def test_a_slightly_worse_candidate_within_tolerance_is_promoted() -> None:
    assert verdict([1.0] * 50, [1.015] * 50).decide == "promote"


def test_records_of_unequal_difficulty_hide_no_rise_that_all_of_them_share() -> None:
    restless, calm = noisy(1.0, 30, spread=1.0), noisy(1.0, 30, spread=0.01)
    found = [verdict(before, [loss + 0.1 for loss in before]) for before in (restless, calm)]
    assert [decision.decide for decision in found] == ["hold", "hold"]
    floors = [decision.tests[0].noise_floor for decision in found]
    assert floors[0] is not None and floors[1] is not None and floors[0] > 0.1 > floors[1]


def test_a_candidate_that_may_only_seem_worse_is_promoted() -> None:
    decision = verdict([1.0] * 8, [0.5, 1.6, 0.6, 1.5, 1.4, 0.7, 1.5, 0.9])
    assert decision.decide == "promote"
    assert decision.mean_difference is not None and decision.mean_difference > DEFAULTS.tolerance


def test_without_any_record_there_is_nothing_to_hold_it_for() -> None:
    decision = verdict([], [])
    assert (decision.decide, decision.reason) == ("promote", "no held-out records to test on")
    assert decision.interval is None


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_a_loss_that_is_not_a_number_is_held(broken: float | None) -> None:
    found = results(1.0, count=2)
    found[0] = found[0].model_copy(update={"loss_sum": broken})
    against = broken_losses(OWN, found)
    decision = decide([], DEFAULTS, change=held_out_change([], [], DEFAULTS, 0), broken=against)
    assert decision.decide == "hold"
    assert "1 of 2 records" in decision.reason


def test_a_sound_candidate_replaces_a_broken_version() -> None:
    assert verdict([math.nan, 1.0], [5.0, 1.0]).decide == "promote"


def test_losses_of_different_records_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="not of the same records"):
        held_out_change([1.0], [1.0, 2.0], DEFAULTS, 0)


def test_answers_that_got_lost_hold_a_candidate_whose_losses_did_not_rise() -> None:
    tests = compare_results(SUITE, results(1.0, said=28), results(1.0, said=5), DEFAULTS, seed=0)
    decision = decide(tests, DEFAULTS, change=held_out_change([], [], DEFAULTS, 0))
    assert decision.decide == "hold"
    assert "expected answers said word for word 93% → 17% of 30 records (23 lost, 0 gained" in decision.reason


def test_only_records_that_both_models_answered_are_compared() -> None:
    (_, test) = compare_results(
        SUITE, results(1.0, correct=4, count=10), results(1.0, correct=4, count=20), DEFAULTS, seed=0
    )
    assert (test.measure, test.records) == ("answers", 10)


def test_many_slices_make_one_of_them_less_surprising() -> None:
    slight = compare_results(SUITE, results(1.0, correct=6), results(1.0, correct=0), DEFAULTS, seed=0)
    same = compare_results(SUITE, results(1.0, correct=6), results(1.0, correct=6), DEFAULTS, seed=0)
    change = held_out_change([], [], DEFAULTS, 0)
    assert decide(slight, DEFAULTS, change=change).decide == "hold"
    assert decide([*slight, *same * 5], DEFAULTS, change=change).decide == "promote"


@pytest.mark.parametrize(("slices", "records"), [(8, 12), (24, 4), (48, 2), (96, 1)])
def test_noise_holds_no_more_versions_of_a_long_lineage_than_the_confidence_says(
    slices: int, records: int
) -> None:
    generator = np.random.default_rng(6)
    held = 0
    for seed in range(20):
        tests = [
            test
            for change in generator.normal(0, 0.05, (slices, records))
            for test in compare_losses(OWN, [1.0] * records, list(1.0 + change), DEFAULTS, seed=seed)
        ]
        decision = decide(tests, DEFAULTS, change=held_out_change([], [], DEFAULTS, seed))
        held += decision.decide == "hold"
    assert held <= 2


@pytest.mark.parametrize(("slices", "records"), [(12, 8), (300, 8)])
def test_one_ruined_slice_of_a_long_lineage_holds(slices: int, records: int) -> None:
    generator = np.random.default_rng(7)
    tests = [
        test
        for number, change in enumerate(generator.normal(0, 0.05, (slices, records)))
        for test in compare_losses(
            OWN,
            [1.0] * records,
            list(1.0 + change * (1 if number else 10) + (0 if number else 6.0)),
            DEFAULTS,
            seed=0,
        )
    ]
    assert decide(tests, DEFAULTS, change=held_out_change([], [], DEFAULTS, 0)).decide == "hold"


def test_falling_behind_the_base_counts_only_for_the_version_that_does() -> None:
    base, decayed, worse = results(1.0, correct=25), results(1.0, correct=8), results(1.0, correct=7)
    (crossing,) = compare_with_base(SUITE, base, base, decayed, DEFAULTS, seed=0)
    assert crossing.p_worse < 0.001 and crossing.against == "base"
    assert compare_with_base(SUITE, base, decayed, worse, DEFAULTS, seed=0) == []


def test_words_that_became_less_likely_are_no_skill_lost_where_answers_stay_right() -> None:
    (test,) = compare_suites(SUITE, results(1.0, correct=20), results(6.0, correct=20), DEFAULTS, seed=0)
    assert (test.measure, test.difference) == ("answers", 0.0)
    assert decide([test], DEFAULTS, change=held_out_change([], [], DEFAULTS, 0)).decide == "promote"


def test_items_of_a_suite_that_were_not_answered_count_by_what_would_have_been_said() -> None:
    (test,) = compare_suites(SUITE, results(1.0, said=28), results(1.0, said=5), DEFAULTS, seed=0)
    decision = decide([test], DEFAULTS, change=held_out_change([], [], DEFAULTS, 0))
    assert decision.decide == "hold"
    assert "(23 lost, 0 gained, tolerated 5 points, p " in decision.reason


@pytest.mark.config_key("promotion.suite_tolerance")
def test_suites_may_lose_as_many_answers_as_are_tolerated() -> None:
    before, after = results(1.0, correct=30), results(1.0, correct=18)
    found = []
    for tolerance in (5.0, 50.0):
        config = PromotionConfig(suite_tolerance=tolerance)
        tests = compare_suites(SUITE, before, after, config, seed=0)
        found.append(decide(tests, config, change=held_out_change([], [], config, 0)).decide)
    assert found == ["hold", "promote"]


def test_a_doubt_about_the_file_holds_it_whatever_the_numbers_say() -> None:
    change = held_out_change([2.0] * 9, [1.0] * 9, DEFAULTS, 0)
    decision = decide([], DEFAULTS, change=change, doubts=["needs a person: all answers are the same"])
    assert decision.decide == "hold"
    assert decision.reason.startswith("needs a person: all answers are the same; held-out loss 2.0000")


@pytest.mark.config_key("promotion.policy")
@pytest.mark.parametrize(
    ("policy", "better", "same", "worse"),
    [
        ("not_worse", "promote", "promote", "hold"),
        ("better", "promote", "hold", "hold"),
        ("always", "promote", "promote", "promote"),
        ("manual", "hold", "hold", "hold"),
    ],
)
def test_the_policy_says_what_a_version_must_show(policy: Any, better: str, same: str, worse: str) -> None:
    config = PromotionConfig(policy=policy)
    before = [1.0] * 20
    found = [verdict(before, [after] * 20, config) for after in (0.5, 1.0, 1.5)]
    assert [decision.decide for decision in found] == [better, same, worse]
    assert len(found[2].reasons) == 1  # said even where it decides nothing


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        before = rng.normal(1.0, 0.3, 60)
        after = before + rng.normal(0.05, 0.2, 60)
        interval = held_out_change(list(before), list(after), DEFAULTS, trial).interval
        assert interval is not None
        covered += interval[0] <= 0.05 <= interval[1]
    assert covered / 100 >= 0.88


@pytest.mark.config_key("promotion.tolerance")
def test_a_higher_tolerance_promotes_what_a_lower_one_holds() -> None:
    assert verdict([1.0] * 50, [1.1] * 50, PromotionConfig(tolerance=0.05)).decide == "hold"
    assert verdict([1.0] * 50, [1.1] * 50, PromotionConfig(tolerance=0.15)).decide == "promote"


@pytest.mark.config_key("promotion.confidence")
def test_a_higher_confidence_widens_the_interval_and_holds_less() -> None:
    before, after = [1.0] * 12, noisy(1.25, 12, seed=3)
    bold, careful = (verdict(before, after, PromotionConfig(confidence=level)) for level in (0.8, 0.9999))
    assert (bold.decide, careful.decide) == ("hold", "promote")


@settings(deadline=None, max_examples=10)
@given(before=losses, seed=st.integers(0, 2**32 - 1))
def test_a_candidate_that_is_nowhere_worse_is_always_promoted(before: list[float], seed: int) -> None:
    assert verdict(before, [0.9 * loss for loss in before], seed=seed).decide == "promote"


@settings(deadline=None, max_examples=10)
@given(before=losses, seed=st.integers(0, 2**32 - 1))
def test_the_same_losses_and_seed_always_give_the_same_decision(before: list[float], seed: int) -> None:
    after = before[::-1]
    assert verdict(before, after, seed=seed) == verdict(before, after, seed=seed)


def test_tests_that_can_show_no_harm_do_not_weaken_those_that_can() -> None:
    slices = [
        OWN,
        *(
            OWN.model_copy(update={"slice_id": f"{number:06}-aaaaaaaa", "name": f"{number}"})
            for number in range(8)
        ),
    ]
    nothing_right, most_right = results(1.0, said=0), results(1.0, said=20)
    harmed = compare_results(
        slices[0], most_right, results(1.0, said=14), DEFAULTS, seed=0, with_losses=False
    )
    mute = [
        test
        for part in slices[1:]
        for test in compare_results(part, nothing_right, nothing_right, DEFAULTS, seed=0, with_losses=False)
    ]
    change = held_out_change([], [], DEFAULTS, 0)
    decision = decide([*mute, *harmed], DEFAULTS, change=change)
    assert decision.decide == "hold"
    assert [test.adjusted_p_worse for test in decision.tests] == [*[1.0] * len(mute), harmed[0].p_worse]


@given(right=st.integers(0, 30), kept=st.integers(0, 30))
def test_a_version_is_held_for_lost_answers_only_if_they_are_enough_by_themselves(
    right: int, kept: int
) -> None:
    kept = min(right, kept)
    tests = compare_results(
        *(OWN, results(1.0, said=right), results(1.0, said=kept), DEFAULTS), seed=0, with_losses=False
    )
    decision = decide(tests, DEFAULTS, change=held_out_change([], [], DEFAULTS, 0))
    assert (decision.decide == "hold") == (0.5 ** (right - kept) < 0.05)
