"""A run ends when it has stopped getting better, says why, and decides the same after a restart."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.early_stopping import EarlyStopping, StoppingRule, StoppingState


def stops_at(rule: StoppingRule, values: Sequence[float | None]) -> int | None:
    """Return the number of the evaluation at which a run stops."""
    stopping = EarlyStopping(rule)
    for number, value in enumerate(values, 1):
        if stopping.observe(10 * number, value) is not None:
            return number
    return None


def test_it_stops_when_patience_is_used_up() -> None:
    assert stops_at(StoppingRule(patience=2), [1.0, 0.9, 0.95, 0.91, 0.8]) == 4
    assert stops_at(StoppingRule(patience=3), [1.0, 0.9, 0.95, 0.91, 0.8]) is None


def test_an_improvement_gives_all_patience_back() -> None:
    assert stops_at(StoppingRule(patience=2), [1.0, 1.1, 0.9, 1.0, 0.8, 0.9]) is None


def test_a_gain_smaller_than_the_least_that_counts_is_none() -> None:
    assert stops_at(StoppingRule(patience=2, min_delta=0.01), [1.0, 0.995, 0.992]) == 3


def test_small_gains_add_up() -> None:
    slow = [1.0 - 0.006 * number for number in range(20)]
    assert stops_at(StoppingRule(patience=2, min_delta=0.01), slow) is None


@pytest.mark.parametrize("broken", [None, math.nan, math.inf])
def test_a_failed_evaluation_is_no_improvement(broken: float | None) -> None:
    assert stops_at(StoppingRule(patience=2), [1.0, broken, broken]) == 3
    assert stops_at(StoppingRule(patience=2), [broken, broken]) == 2


def test_it_says_why() -> None:
    stopping = EarlyStopping(StoppingRule(patience=1, metric="eval_loss", min_delta=0.01))
    assert stopping.observe(100, 0.5) is None
    reason = stopping.observe(200, 0.6)
    assert reason == (
        "eval_loss has not improved by more than 0.01 in 1 evaluations up to step 200 "
        "(best 0.5 at 100; patience 1)"
    )


def test_a_step_is_counted_once() -> None:
    stopping = EarlyStopping(StoppingRule(patience=2))
    stopping.observe(10, 1.0)
    for _ in range(5):
        assert stopping.observe(20, 1.5) is None
    assert stopping.state.without_improvement == 1


@pytest.mark.parametrize("bad", [{"patience": 0}, {"patience": 1, "min_delta": -0.1}])
def test_a_rule_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        StoppingRule(**bad)  # type: ignore[arg-type]


@given(st.lists(st.floats(), min_size=1, max_size=15), st.integers(1, 4), st.data())
def test_a_resumed_run_decides_the_same(values: list[float], patience: int, draw: st.DataObject) -> None:
    rule = StoppingRule(patience=patience, min_delta=0.1)
    straight, resumed = EarlyStopping(rule), EarlyStopping(rule)
    cut = draw.draw(st.integers(0, len(values)))
    for number, value in enumerate(values):
        if number == cut:
            stored = json.dumps(resumed.state.to_json(), allow_nan=False)
            resumed = EarlyStopping(rule, StoppingState.from_json(json.loads(stored)))
        assert straight.observe(number, value) == resumed.observe(number, value)
    assert straight.state == resumed.state
