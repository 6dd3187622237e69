"""Shares of right answers."""

from __future__ import annotations

import pytest

from evaluation.items import ItemResult
from evaluation.suites import load_suite
from evaluation.suites.scores import scores


def results(level: str | None, correct: int, items: int, **fields: object) -> list[ItemResult]:
    return [
        ItemResult.model_validate(
            {
                "item_id": f"{level}-{number}",
                "level": level,
                "grader": "exact",
                "expected": "yes",
                "answer": "no",
                "correct": number < correct,
                "score": float(number < correct),
                **fields,
            }
        )
        for number in range(items)
    ]


def test_levels_come_in_order_and_all_items_last_with_wilsons_interval() -> None:
    found = scores(results("warm", 30, 50) + results("hot", 43, 50, finish_reason="length"))
    assert [(score.level, score.is_overall, score.correct, score.items) for score in found] == [
        ("warm", False, 30, 50),
        ("hot", False, 43, 50),
        (None, True, 73, 100),
    ]
    assert [score.cut_off for score in found] == [0, 50, 50]
    assert found[-1].accuracy == found[-1].mean_score == 0.73
    assert found[-1].interval == pytest.approx((0.636, 0.807), abs=5e-4)
    assert found[-1].format_rate is None


def test_nothing_answered_has_no_score() -> None:
    assert scores([]) == []


def test_an_answer_that_time_did_not_suffice_for_is_neither_right_nor_wrong() -> None:
    unknown = {"correct": None, "score": None, "finish_reason": "time"}
    late = [one.model_copy(update=unknown) for one in results("warm", 0, 4) + results("hot", 0, 2)]
    (warm, overall) = scores(results("warm", 3, 6) + late)
    assert [(score.level, score.correct, score.items, score.cut_off) for score in (warm, overall)] == [
        ("warm", 3, 6, 4),
        (None, 3, 6, 6),
    ]
    assert scores(late) == []


def test_the_form_of_puzzles_is_counted_whatever_their_words() -> None:
    item = load_suite("syllo_easy_100").items[0]
    right = item.expected
    answers = [right, right.replace('"answer":"', '"answer":"X'), f"Sure: {right}", "no idea"]
    (level, overall) = scores(
        [
            ItemResult(
                item_id=str(number),
                level="easy",
                grader="syllo",
                expected=right,
                answer=answer,
                correct=False,
            )
            for number, answer in enumerate(answers)
        ]
    )
    assert (level.format_ok, level.format_rate) == (2, 0.5) == (overall.format_ok, overall.format_rate)
