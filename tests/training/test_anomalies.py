"""What is odd enough in a run to keep the answers of that moment."""

from __future__ import annotations

import math

import pytest

from training.anomalies import LEAST, Anomalies
from training.held_out import AnsweredExample


def answer(matches: bool, loss: float | None, number: int = 0) -> AnsweredExample:
    return AnsweredExample(
        example_id=f"{number:032x}",
        system_prompt=None,
        prompt="2+2?",
        golden="4",
        golden_tokens=1,
        answer="4" if matches else "5",
        answer_tokens=1,
        matches=matches,
        loss=loss,
        error=None,
    )


def kinds_of(losses: list[float]) -> list[str | None]:
    anomalies = Anomalies()
    found = [anomalies.of_step(loss) for loss in losses]
    return [None if odd is None else odd.kind for odd in found]


def steady(count: int) -> list[float]:
    return [2.0 + 0.1 * (-1) ** number for number in range(count)]


def test_a_loss_a_third_above_the_recent_mean_is_odd() -> None:
    assert kinds_of([*steady(LEAST), 2.61]) == [*[None] * LEAST, "loss_rise"]


@pytest.mark.parametrize(("loss", "kind"), [(2.31, "loss_outlier"), (1.69, "loss_outlier"), (2.29, None)])
def test_a_loss_three_deviations_off_is_odd(loss: float, kind: str | None) -> None:
    assert kinds_of([*steady(LEAST), loss])[-1] == kind


def test_nothing_is_odd_while_little_is_known() -> None:
    assert kinds_of([2.0, 1.0, 9.0, *steady(LEAST - 4)]) == [None] * (LEAST - 1)


def test_a_value_is_not_part_of_what_it_is_compared_with() -> None:
    anomalies = Anomalies()
    for loss in steady(LEAST):
        anomalies.of_step(loss)
    odd = anomalies.of_step(4.0)
    assert odd is not None
    assert odd.value == 4.0
    assert odd.reference == pytest.approx(2.0)


def test_an_evaluation_two_percent_below_the_best_is_a_new_best() -> None:
    anomalies = Anomalies()
    found = [anomalies.of_evaluation(loss) for loss in (1.0, 0.99, 0.97, 0.98, 0.949)]
    assert [odd is not None for odd in found] == [False, False, True, False, True]
    assert found[-1] is not None and (found[-1].kind, found[-1].reference) == ("new_best", 0.97)


@pytest.mark.parametrize(("right", "kind"), [(9, "accuracy_drop"), (10, None)])
def test_ten_points_fewer_right_answers_are_odd(right: int, kind: str | None) -> None:
    anomalies = Anomalies()
    assert anomalies.of_answers([answer(number < 11, 1.0) for number in range(20)]) is None
    odd = anomalies.of_answers([answer(number < right, 1.0) for number in range(20)])
    assert (None if odd is None else odd.kind) == kind


@pytest.mark.parametrize(
    ("matches", "loss", "kind"),
    [
        (True, 3.1, "right_but_unsure"),
        (True, 2.9, None),
        (False, 0.05, "wrong_but_sure"),
        (False, 0.2, None),
        (True, None, None),
        (False, math.nan, None),
    ],
)
def test_an_answer_that_contradicts_its_loss_is_odd(
    matches: bool, loss: float | None, kind: str | None
) -> None:
    odd = Anomalies().of_answers([answer(True, 1.0), answer(matches, loss, number=7)])
    assert (None if odd is None else odd.kind) == kind
    assert odd is None or odd.example_id == f"{7:032x}"
