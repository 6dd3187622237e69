"""Speed is exact under a clock of our own, and an ETA includes what is no training."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.throughput_monitor import ThroughputMonitor, corrected_total


def after(steps: int, tokens: int = 1000, seconds: float = 0.5, records: int = 0) -> ThroughputMonitor:
    """Return a monitor that has seen a slow first step and then `steps` even ones."""
    monitor = ThroughputMonitor()
    monitor.observe_step(tokens, 60.0, records)
    for _ in range(steps):
        monitor.observe_step(tokens, seconds, records)
    return monitor


@pytest.mark.parametrize("steps", [1, 10, 19, 20, 49, 50, 500])
def test_two_thousand_tokens_a_second_are_measured_as_two_thousand(steps: int) -> None:
    speed = after(steps).snapshot()
    assert speed.tokens_per_sec == pytest.approx(2000)
    assert speed.tokens_per_sec_avg == pytest.approx(2000)
    assert speed.tokens_per_sec_smoothed == pytest.approx(2000)
    assert speed.total_tokens == 1000 * (steps + 1)


def test_before_the_second_step_nothing_is_known() -> None:
    speed = after(0).snapshot()
    assert (speed.tokens_per_sec, speed.tokens_per_sec_avg, speed.efficiency_ratio) == (None, None, None)
    assert after(0).eta(1, 10) is None


def test_samples_a_second_count_records_and_not_steps() -> None:
    assert after(10, seconds=0.5, records=32).snapshot().samples_per_sec == pytest.approx(64.0)
    assert after(10).snapshot().samples_per_sec is None


def test_evaluations_and_checkpoints_do_not_slow_the_speed() -> None:
    monitor = after(30)
    monitor.observe_other("evaluation", 300.0)
    monitor.observe_step(1000, 0.5)
    speed = monitor.snapshot()
    assert speed.tokens_per_sec == pytest.approx(2000)
    assert speed.other_seconds == 300.0
    assert speed.training_seconds == pytest.approx(15.5)


def test_the_baseline_is_that_of_twenty_steps_and_stays() -> None:
    assert after(19).snapshot().tokens_per_sec_baseline is None
    monitor = after(20)
    for _ in range(100):
        monitor.observe_step(1000, 1.0)
    speed = monitor.snapshot()
    assert speed.tokens_per_sec_baseline == pytest.approx(2000)
    assert speed.efficiency_ratio == pytest.approx(0.5, abs=0.001)


def test_a_drop_to_half_shows_below_sixty_percent_within_twenty_steps() -> None:
    monitor = after(60)
    ratios = []
    for _ in range(20):
        monitor.observe_step(1000, 1.0)
        ratios.append(monitor.snapshot().efficiency_ratio or 0.0)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 0.9 and ratios[-1] < 0.6


@pytest.mark.parametrize(("newer", "word"), [(0.4, "improving"), (0.52, "stable"), (0.6, "degrading")])
@pytest.mark.parametrize("half", [10, 25])
def test_the_trend_compares_halves_of_any_window_of_at_least_twenty(
    newer: float, word: str, half: int
) -> None:
    monitor = after(half)
    assert monitor.snapshot().throughput_trend == ("insufficient_data" if half == 10 else "stable")
    for _ in range(half):
        monitor.observe_step(1000, newer)
    assert monitor.snapshot().throughput_trend == word


def test_the_eta_of_an_even_run_is_exact_and_sure() -> None:
    eta = after(40).eta(41, 141)
    assert eta is not None
    assert eta.seconds == pytest.approx(50.0)
    assert eta.confidence == "high"


def test_the_eta_counts_the_evaluations_still_to_come() -> None:
    monitor = after(40)
    monitor.observe_other("evaluation", 30.0)
    planned = monitor.eta(41, 141, {"evaluation": 3})
    assert planned is not None and planned.seconds == pytest.approx(50.0 + 90.0)
    guessed = monitor.eta(41, 141)
    assert guessed is not None and guessed.seconds == pytest.approx(50.0 + 100 * 30.0 / 40)
    last, done = monitor.eta(141, 141, {"evaluation": 1}), monitor.eta(141, 141)
    assert last is not None and last.seconds == pytest.approx(30.0)
    assert done is not None and done.seconds == 0.0


def test_every_checkpoint_of_a_long_run_counts_in_its_eta() -> None:
    monitor = after(400)
    for _ in range(100):
        monitor.observe_other("checkpoint", 2.0)
    eta = monitor.eta(401, 501)
    assert eta is not None and eta.seconds == pytest.approx(100 * 0.5 + 25 * 2.0)


def test_the_eta_of_a_noisy_run_with_evaluations_is_off_by_less_than_a_tenth() -> None:
    draw = random.Random(5)
    monitor, eta_seconds, left = after(1), 0.0, 0.0
    for step in range(2, 401):
        seconds = draw.uniform(0.4, 0.6)
        other = 12.0 if step % 50 == 0 else 0.0
        monitor.observe_step(1000, seconds)
        if other:
            monitor.observe_other("evaluation", other)
        if step == 120:
            eta = monitor.eta(step, 400, {"evaluation": 6})
            assert eta is not None
            eta_seconds = eta.seconds
        elif step > 120:
            left += seconds + other
    assert eta_seconds == pytest.approx(left, rel=0.1)


@pytest.mark.parametrize(("spread", "word"), [(0.1, "high"), (0.3, "medium"), (0.5, "low")])
def test_the_confidence_falls_with_the_spread_of_the_steps(spread: float, word: str) -> None:
    monitor = ThroughputMonitor()
    for number in range(21):
        monitor.observe_step(1000, 1.0 + (spread if number % 2 else -spread))
    eta = monitor.eta(21, 100)
    assert eta is not None and eta.confidence == word


def test_a_few_steps_give_an_eta_of_low_confidence() -> None:
    few, enough = after(4).eta(5, 10), after(5).eta(6, 10)
    assert few is not None and few.seconds == pytest.approx(2.5) and few.confidence == "low"
    assert enough is not None and enough.confidence == "high"


def test_recent_steps_weigh_more() -> None:
    monitor = after(10, seconds=1.0)
    for _ in range(10):
        monitor.observe_step(1000, 2.0)
    eta = monitor.eta(21, 31)
    assert eta is not None and eta.seconds == pytest.approx(10 * (55 * 1.0 + 155 * 2.0) / 210)


def test_a_run_longer_than_planned_corrects_its_total() -> None:
    assert [corrected_total(100, seen) for seen in (50, 100, 110, 111, 200)] == [100, 100, 110, 117, 210]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0.0, 1e4)), max_size=70), st.integers(0, 200))
def test_the_average_is_all_tokens_over_all_seconds(steps: list[tuple[int, float]], total: int) -> None:
    monitor = ThroughputMonitor()
    for tokens, seconds in steps:
        monitor.observe_step(tokens, seconds)
    speed = monitor.snapshot()
    seconds = sum(seconds for _, seconds in steps[1:])
    assert speed.tokens_per_sec_avg == (
        pytest.approx(sum(tokens for tokens, _ in steps[1:]) / seconds) if seconds > 0 else None
    )
    eta = monitor.eta(len(steps), total)
    assert eta is None or eta.seconds >= 0
