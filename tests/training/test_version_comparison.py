"""Two models side by side: numbers, tests and a winner, or none."""

from __future__ import annotations

import pytest

from evaluation.items import ItemResult
from training.version_comparison import compare


def results(right: int, loss: float | None, count: int = 30) -> list[ItemResult]:
    return [
        ItemResult(
            item_id=f"item-{number}",
            grader="exact",
            expected="yes",
            loss_sum=loss,
            loss_tokens=None if loss is None else 1,
            answer="yes" if number < right else "no",
            correct=number < right,
            f1=float(number < right),
        )
        for number in range(count)
    ]


def test_the_better_model_is_named_with_its_numbers() -> None:
    found = compare("v1", "v2", [("facts", results(5, 2.0), results(25, 1.0))], confidence=0.95, seed=0)
    (part,) = found.parts
    assert (found.winner, part.winner) == ("b", "b")
    assert (part.gained, part.lost) == (20, 0)
    assert part.accuracy_difference == pytest.approx(2 / 3)
    assert part.mcnemar_p == pytest.approx(2 * 0.5**20)
    assert (part.loss_difference, part.loss_interval) == (-1.0, (-1.0, -1.0))
    assert len(found.disagreements) == 20


def test_models_that_are_alike_make_no_difference() -> None:
    found = compare("v1", "v2", [("facts", results(9, 1.0), results(10, 1.0))], confidence=0.95, seed=0)
    assert found.winner == "no difference"
    assert [pair.item_id for pair in found.disagreements] == ["item-9"]


def test_each_may_be_better_somewhere() -> None:
    parts = [("facts", results(0, None), results(30, None)), ("forms", results(30, None), results(0, None))]
    found = compare("v1", "v2", parts, confidence=0.95, seed=0)
    assert found.winner == "each somewhere"
    assert [part.winner for part in found.parts] == ["b", "a"]
    assert found.parts[0].loss_difference is None


def test_only_items_that_both_were_asked_are_compared() -> None:
    found = compare("v1", "v2", [("facts", results(3, 1.0, 8), results(3, 1.0, 5))], confidence=0.95, seed=0)
    assert found.parts[0].records == 5
