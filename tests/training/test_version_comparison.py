"""Two models side by side: numbers, tests and a winner, or none."""

from __future__ import annotations

import pytest

from evaluation.items import ItemResult
from training.version_comparison import Answered, Comparison, compare
from training.version_report import SliceKind

KINDS: tuple[SliceKind, SliceKind] = ("suite", "held_out")


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


def pairs(preferred: int, loss: float, count: int = 30) -> list[ItemResult]:
    """Let the chosen answers of the first `preferred` pairs be likelier than the rejected ones."""
    return [
        ItemResult(
            item_id=f"pair-{number}", loss_sum=loss, loss_tokens=1, prefers_expected=number < preferred
        )
        for number in range(count)
    ]


def side_by_side(
    a: list[ItemResult], b: list[ItemResult], kind: SliceKind = "held_out", name: str = "facts"
) -> Comparison:
    return compare("v1", "v2", [Answered(name, kind, a, b)], confidence=0.95, seed=0)


def test_the_better_model_is_named_with_its_numbers() -> None:
    found = side_by_side(results(5, 2.0), results(25, 1.0))
    (part,) = found.parts
    assert (found.winner, part.winner) == ("b", "b")
    assert (part.gained, part.lost) == (20, 0)
    assert part.accuracy_difference == pytest.approx(2 / 3)
    assert part.mcnemar_p == pytest.approx(2 * 0.5**20)
    assert (part.loss_difference, part.loss_interval) == (-1.0, (-1.0, -1.0))
    assert len(found.disagreements) == 20


def test_models_that_are_alike_make_no_difference() -> None:
    found = side_by_side(results(9, 1.0), results(10, 1.0))
    assert found.winner == "no difference"
    assert [pair.item_id for pair in found.disagreements] == ["item-9"]


def test_each_may_be_better_somewhere() -> None:
    none, all_right = results(0, None), results(30, None)
    parts = [Answered("facts", "held_out", none, all_right), Answered("forms", "suite", all_right, none)]
    found = compare("v1", "v2", parts, confidence=0.95, seed=0)
    assert found.winner == "each somewhere"
    assert [part.winner for part in found.parts] == ["b", "a"]
    assert found.parts[0].loss_difference is None


def test_only_items_that_both_were_asked_are_compared() -> None:
    found = side_by_side(results(3, 1.0, 8), results(3, 1.0, 5))
    assert found.parts[0].records == 5


def test_pairs_are_won_by_preferring_whatever_the_loss_of_the_chosen_answers() -> None:
    found = side_by_side(pairs(0, 1.0), pairs(30, 1.5))
    (part,) = found.parts
    assert (found.winner, part.winner) == ("b", "b")
    assert (part.loss_difference, part.loss_decides) == (0.5, False)
    assert len(found.disagreements) == 30


def test_pairs_whose_chosen_answers_only_get_less_likely_make_no_difference() -> None:
    found = side_by_side(pairs(20, 1.0), pairs(20, 1.5))
    assert (found.winner, found.disagreements) == ("no difference", ())


def test_the_loss_of_the_words_of_a_suite_makes_no_winner_and_that_of_held_out_records_does() -> None:
    suite, held_out = (side_by_side(results(9, 1.0), results(9, 1.5), kind) for kind in KINDS)
    assert (suite.winner, suite.parts[0].loss_difference, suite.parts[0].loss_decides) == (
        "no difference",
        0.5,
        False,
    )
    assert (held_out.winner, held_out.parts[0].loss_decides) == ("a", True)
