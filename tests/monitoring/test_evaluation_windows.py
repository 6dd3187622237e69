"""Known sequences of answers give known accuracies."""

from __future__ import annotations

import math

import pytest

from monitoring.evaluation_windows import EvaluationSnapshot, EvaluationWindows, RecentExample


def answer(
    matches: bool, step: int = 1, output: str = "yes", file: str | None = "a.jsonl", loss: float | None = 0.5
) -> RecentExample:
    return RecentExample(
        step=step,
        current_file=file,
        system_prompt=None,
        prompt="is it?",
        golden="yes",
        model_output=output,
        matches=matches,
        loss=loss,
    )


def after(*matches: bool) -> EvaluationSnapshot:
    windows = EvaluationWindows()
    for step, one in enumerate(matches):
        windows.observe(answer(one, step))
    return windows.snapshot()


def test_before_the_first_answer_accuracy_is_unknown_and_not_zero() -> None:
    empty = after()
    assert (empty.total_evals, empty.total_correct) == (0, 0)
    assert (empty.accuracy_percent, empty.accuracy_last_20, empty.accuracy_last_50) == (None, None, None)
    assert (empty.accuracy_trend, empty.recent_examples) == ("insufficient_data", ())


def test_a_known_sequence_gives_known_windows() -> None:
    seen = after(*[False] * 40, *[True] * 30, *[False, True] * 10)
    assert (seen.total_evals, seen.total_correct) == (90, 40)
    assert seen.accuracy_percent == pytest.approx(44.444, abs=1e-3)
    assert (seen.accuracy_last_20, seen.accuracy_last_50) == (50.0, 80.0)
    assert seen.accuracy_trend == "improving"


@pytest.mark.parametrize(
    ("newest", "word"), [(13, "improving"), (12, "stable"), (11, "degrading"), (9, "degrading")]
)
def test_three_points_from_all_answers_are_a_trend(newest: int, word: str) -> None:
    # 60 % of the first 180 were right.
    before = [True] * 108 + [False] * 72
    assert after(*before, *[True] * newest, *[False] * (20 - newest)).accuracy_trend == word


def test_the_last_twenty_are_compared_only_when_there_are_others() -> None:
    assert after(*[True] * 20).accuracy_trend == "insufficient_data"
    assert after(*[True] * 21).accuracy_trend == "stable"


def test_five_examples_are_shown_and_none_of_them_twice() -> None:
    windows = EvaluationWindows()
    for step in range(8):
        windows.observe(answer(True, step))
    windows.observe(answer(True, 7))
    windows.observe(answer(True, 7, output="no"))
    windows.observe(answer(True, 7, file="b.jsonl"))
    shown = windows.snapshot().recent_examples
    assert [(one.step, one.current_file, one.model_output) for one in shown] == [
        (5, "a.jsonl", "yes"),
        (6, "a.jsonl", "yes"),
        (7, "a.jsonl", "yes"),
        (7, "a.jsonl", "no"),
        (7, "b.jsonl", "yes"),
    ]


def test_scripts_find_the_fields_they_count() -> None:
    samples = after(*[True] * 30, *[False] * 40).eval_samples
    assert len(samples) == 50
    assert sum(sample.answer_matches for sample in samples) == 10
    assert samples[-1].model_dump() == {
        "step": 69,
        "current_file": "a.jsonl",
        "prompt": "is it?",
        "golden_answer": "yes",
        "model_answer": "yes",
        "answer_matches": False,
        "loss": 0.5,
    }


def test_a_loss_that_is_no_number_is_shown_as_unknown() -> None:
    windows = EvaluationWindows()
    windows.observe(answer(False, loss=math.nan))
    seen = windows.snapshot()
    assert (seen.recent_examples[0].loss, seen.eval_samples[0].loss) == (None, None)


def test_answers_that_think_aloud_are_counted() -> None:
    windows = EvaluationWindows()
    for output in ("<think>\n\n</think>yes", "yes", "no", "well <think>"):
        windows.observe(answer(True, output=output))
    seen = windows.snapshot()
    assert (seen.think_tag_count, seen.think_tag_percent) == (2, 50.0)
