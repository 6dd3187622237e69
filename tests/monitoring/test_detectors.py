"""What is unusual is measured against the run's own past, which never holds the value that is judged."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

import pytest

from monitoring.observation import Observation
from monitoring.smart_alerts import SmartAlerts, Transition

GIB = 2**30


def told(alerts: SmartAlerts, observations: Iterable[Observation]) -> list[Transition]:
    return [change for one in observations for change in alerts.observe(one)]


def raised(changes: Iterable[Transition]) -> list[str]:
    return [change.alert.category for change in changes if change.kind == "raised"]


def losses(values: Iterable[float], first: int = 1) -> Iterator[Observation]:
    for step, loss in enumerate(values, first):
        yield Observation(step=step, loss=loss)


def noisy(level: float, count: int, noise: float = 0.05, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, noise)) for _ in range(count)]


def test_a_jump_to_twice_the_median_is_a_spike_although_its_own_value_would_hide_it() -> None:
    alerts = SmartAlerts()
    changes = told(alerts, losses([1.0] * 10 + [2.1] + [1.0] * 10))
    assert [(change.kind, change.alert.category) for change in changes] == [
        ("raised", "loss_spike"),
        ("resolved", "loss_spike"),
    ]
    # In a mean of ten with itself the limit would be 2.22.
    assert changes[0].alert.details["median"] == pytest.approx(1.0)


def test_a_jump_to_less_than_twice_or_of_less_than_a_tenth_of_a_nat_is_none() -> None:
    assert told(SmartAlerts(), losses([1.0] * 40 + [1.9] + [1.0] * 9)) == []
    assert told(SmartAlerts(), losses([0.02] * 40 + [0.06] + [0.02] * 9)) == []


def test_five_hundred_looks_at_one_spike_are_one_alert() -> None:
    changes = told(SmartAlerts(), losses([1.0] * 20 + [3.0] * 500))
    assert raised(changes).count("loss_spike") == 1


def test_a_rising_loss_diverges_and_is_no_plateau() -> None:
    rising = [1.0 + 2.95 * step / 99 for step in range(100)]
    assert raised(told(SmartAlerts(), losses(rising))) == ["divergence"]


def test_a_loss_that_returns_resolves_its_divergence() -> None:
    series = noisy(1.0, 60) + noisy(3.0, 60, seed=1) + noisy(0.9, 80, seed=2)
    changes = [
        change for change in told(SmartAlerts(), losses(series)) if change.alert.category == "divergence"
    ]
    assert [change.kind for change in changes] == ["raised", "resolved"]


def test_a_flat_loss_is_a_plateau_and_grave_only_when_nothing_was_learned() -> None:
    stuck = told(SmartAlerts(), losses(noisy(2.0, 120, noise=0.01)))
    assert [(change.alert.category, change.alert.severity) for change in stuck] == [("plateau", "warning")]
    falling = [2.0 - step * 0.02 for step in range(50)]
    converged = told(SmartAlerts(), losses(falling + noisy(1.0, 120, noise=0.01)))
    assert [(change.alert.category, change.alert.severity) for change in converged] == [("plateau", "info")]


@pytest.mark.parametrize("change", [-0.01, 0.01])
def test_a_plateau_ends_when_the_loss_moves_again(change: float) -> None:
    flat = noisy(2.0, 120, noise=0.01)
    moving = [2.0 + step * change for step in range(1, 61)]
    changes = told(SmartAlerts(), losses(flat + moving))
    assert [change.kind for change in changes if change.alert.category == "plateau"] == ["raised", "resolved"]


def test_a_warm_up_is_no_plateau() -> None:
    warm_up = [Observation(step=step, loss=2.0, learning_rate=step * 1e-7) for step in range(1, 300)]
    assert told(SmartAlerts(), warm_up) == []


def test_memory_that_keeps_growing_is_noticed_and_memory_that_settles_is_not() -> None:
    growing = [Observation(worker_rss_bytes=(3 * GIB + step * 2**23)) for step in range(400)]
    assert raised(told(SmartAlerts(), growing)) == ["ram_creep"]
    settled = [Observation(worker_rss_bytes=min(3 + step / 5, 8) * GIB) for step in range(400)]  # type: ignore[arg-type]
    assert told(SmartAlerts(), settled) == []


def test_memory_that_stops_growing_resolves_its_alert() -> None:
    sizes = [3 * GIB + min(step, 300) * 2**23 for step in range(500)]
    changes = told(SmartAlerts(), (Observation(worker_rss_bytes=size) for size in sizes))
    assert [change.kind for change in changes] == ["raised", "resolved"]


@pytest.mark.parametrize(
    ("errors", "kinds"),
    [
        ((0.14, 0.16), []),  # by less than a fifth
        ((0.10, 0.149), []),  # small still
        ((0.10, 0.16), ["raised"]),
        ((0.20, 0.13, 0.17, 0.17), ["raised"]),  # above the lowest, not above the one before
        ((0.10, 0.16, 0.12), ["raised", "resolved"]),
        ((0.10, 0.31, 0.29, 0.12), ["raised", "resolved"]),
        ((0.28, 0.29), []),
    ],
)
def test_a_calibration_error_that_rises_by_a_fifth_and_is_no_longer_small_is_told_of(
    errors: tuple[float, ...], kinds: list[str]
) -> None:
    changes = told(SmartAlerts(), (Observation(ece=error) for error in errors))
    assert [change.kind for change in changes] == kinds
    assert {change.alert.category for change in changes} <= {"poor_calibration"}
