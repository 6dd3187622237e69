"""The trend of exact match over the evaluations of a run."""

from __future__ import annotations

import pytest

from monitoring.fixed_eval_history import FixedEvalHistory
from monitoring.trends import Trend


def answers(right: int, of: int = 1000) -> list[bool | None]:
    return [number < right for number in range(of)]


def trend_of(*evaluations: list[bool | None]) -> Trend:
    history = FixedEvalHistory()
    for matches in evaluations:
        history.observe(matches)
    return history.trend()


@pytest.mark.parametrize(
    ("right", "trend"),
    [
        ([500], "insufficient_data"),
        ([500, 505], "stable"),
        ([500, 506], "improving"),
        ([500, 494], "degrading"),
        ([100, 500, 501], "stable"),
        ([500, 500, 500, 510, 510, 510], "stable"),
        ([500, 500, 500, 500, 500, 533], "improving"),
        ([500, 500, 500, 470, 500, 499], "degrading"),
        ([0, 0, 500, 500, 500, 500, 500, 500], "stable"),
    ],
)
def test_the_last_three_are_compared_with_the_three_before(right: list[int], trend: Trend) -> None:
    assert trend_of(*map(answers, right)) == trend


def test_only_prompts_that_were_answered_each_time_are_compared() -> None:
    # The last evaluation had time for two prompts, which it got right as before.
    assert trend_of(answers(2, of=4), answers(2, of=2)) == "stable"


def test_an_evaluation_without_answers_is_passed_over() -> None:
    assert trend_of(answers(0), [], [None, None], answers(0)) == "stable"
    assert trend_of([None, True], [True]) == "insufficient_data"
