"""From results to a verdict: what holds a version, what does not, and what the report says of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from config import PromotionConfig
from evaluation.graders import GraderSpec
from evaluation.items import Item, ItemResult, Passage
from training.promotion import Decision
from training.slices import Slice
from training.trainer import RecordLosses
from training.verdict import EARLIER, SUITES, judge
from training.version_report import ModelRole, VersionReport
from training.version_test import Amounts, Measured

CONFIG = PromotionConfig(policy="not_worse", tolerance=0.02, confidence=0.95)
OWN = "000009-3f9c2a10"
RECORDS = 24
AMOUNTS = Amounts(
    **dict.fromkeys(("losses", "earlier_losses", "suite_losses"), RECORDS),
    answers=0,
    training_seconds=10.0,
    budget_seconds=2.0,
)


def earlier(number: int, kind: type[Item | Passage] = Passage) -> Slice:
    """Make the slice of an earlier file, of texts or of questions."""
    names = [f"{number}-{at}" for at in range(RECORDS)]
    if kind is Passage:
        return Slice(f"{number:06d}-aa", "held_out", f"file {number}", tuple(map(Passage, names)))
    items = tuple(Item(name, [], "red", GraderSpec()) for name in names)
    return Slice(f"{number:06d}-aa", "held_out", f"file {number}", items)


def losses_of(part: Slice, values: Sequence[float]) -> list[ItemResult]:
    return [
        ItemResult(item_id=item.item_id, loss_sum=10 * value, loss_tokens=10)
        for item, value in zip(part.items, values, strict=True)
    ]


def answers_of(part: Slice, right: int) -> list[ItemResult]:
    """Let the first `right` items be answered right."""
    return [
        ItemResult(item_id=item.item_id, grader="exact", expected="red", answer="red", correct=number < right)
        for number, item in enumerate(part.items)
    ]


def preferring(part: Slice, count: int, loss: float = 1.0) -> list[ItemResult]:
    """Let the chosen answers of the first `count` pairs be preferred."""
    return [
        result.model_copy(update={"prefers_expected": number < count})
        for number, result in enumerate(losses_of(part, [loss] * RECORDS))
    ]


def noisy(level: float, spread: float, seed: int) -> list[float]:
    draw = random.Random(seed)
    return [level + draw.uniform(-spread, spread) for _ in range(RECORDS)]


def verdict_on(
    before: dict[str, list[ItemResult]],
    after: dict[str, list[ItemResult]],
    slices: Sequence[Slice],
    *,
    own: tuple[list[float], list[float]] = ([2.0] * RECORDS, [1.0] * RECORDS),
    doubts: Sequence[str] = (),
    fit: tuple[Sequence[float], Sequence[float]] = ((), ()),
    config: PromotionConfig = CONFIG,
    base: dict[str, list[ItemResult]] | None = None,
) -> tuple[Decision, VersionReport]:
    """Judge a candidate whose own file got better, unless `own` says otherwise."""
    results: dict[ModelRole, dict[str, list[ItemResult]]] = {
        "candidate": after,
        "current": before,
        "base": before if base is None else base,
    }
    measured = Measured(tuple(slices), results, tuple(fit[0]), tuple(fit[1]), AMOUNTS, 1.0)
    losses = [RecordLosses([10 * value for value in values], [10] * RECORDS) for values in own]
    own_slice = Slice(OWN, "held_out", "own.jsonl", ())
    return judge(measured, own_slice.facts(RECORDS), (losses[0], losses[1]), doubts, config, seed=1)


def test_equal_everywhere_promotes() -> None:
    parts = [earlier(1), earlier(2)]
    same = {part.slice_id: losses_of(part, noisy(1.0, 0.3, seed)) for seed, part in enumerate(parts)}
    level = [2.0] * RECORDS
    decision, report = verdict_on(same, same, parts, own=(level, level))
    assert (decision.decide, report.verdict.decision, decision.reasons) == ("promote", "promote", ())
    assert {test.outcome for test in report.tests} == {"no difference"}
    assert [test.name for test in report.tests] == ["own.jsonl", "file 1", "file 2", EARLIER]


@pytest.mark.parametrize("ruined", [0, 1, 2])
def test_worse_on_one_earlier_slice_holds_and_names_it(ruined: int) -> None:
    parts = [earlier(number) for number in (1, 2, 3)]
    before = {part.slice_id: losses_of(part, noisy(1.0, 0.2, at)) for at, part in enumerate(parts)}
    after = dict(before)
    worse = [value + 0.5 for value in noisy(1.0, 0.2, ruined)]
    after[parts[ruined].slice_id] = losses_of(parts[ruined], worse)
    decision, report = verdict_on(before, after, parts)
    assert decision.decide == "hold"
    assert f"significantly worse on file {ruined + 1}: loss" in decision.reason
    held_by = {test.name for test in report.tests if test.outcome == "worse"}
    assert held_by - {EARLIER} == {f"file {ruined + 1}"}
    assert report.verdict.reasons == decision.reasons


def test_worse_by_less_than_is_tolerated_promotes() -> None:
    part = earlier(1)
    before, after = ({part.slice_id: losses_of(part, [level] * RECORDS)} for level in (1.0, 1.015))
    assert verdict_on(before, after, [part])[0].decide == "promote"
    assert (
        verdict_on(before, after, [part], config=CONFIG.model_copy(update={"tolerance": 0.01}))[0].decide
        == "hold"
    )


def test_damage_spread_thin_over_all_earlier_files_holds_by_all_of_them_together() -> None:
    """Four answers lost of 24 are none by themselves; sixteen of 96 are."""
    parts = [earlier(number, Item) for number in (1, 2, 3, 4)]
    before = {part.slice_id: answers_of(part, 24) for part in parts}
    after = {part.slice_id: answers_of(part, 20) for part in parts}
    decision, report = verdict_on(before, after, parts)
    outcomes = {test.name: test.outcome for test in report.tests if test.measure == "answers"}
    assert outcomes == {f"file {number}": "no difference" for number in (1, 2, 3, 4)} | {EARLIER: "worse"}
    assert decision.decide == "hold"
    assert f"significantly worse on {EARLIER}: right answers 100% → 83% of 96 records" in decision.reason
    (alone,) = parts[:1]
    one = {alone.slice_id: before[alone.slice_id]}, {alone.slice_id: after[alone.slice_id]}
    assert verdict_on(*one, [alone])[0].decide == "promote"


def test_one_earlier_file_is_not_tested_twice() -> None:
    part = earlier(1)
    same = {part.slice_id: losses_of(part, [1.0] * RECORDS)}
    _, report = verdict_on(same, same, [part])
    assert [test.name for test in report.tests] == ["own.jsonl", "file 1"]


def test_the_tests_of_all_slices_are_corrected_for_being_many() -> None:
    """Six answers lost have p 0.016: enough beside one other test, too little beside many."""
    one, *others = [earlier(number, Item) for number in range(1, 8)]
    decisions = []
    for parts in ([one], [one, *others]):
        before = {part.slice_id: answers_of(part, 24) for part in parts}
        after = before | {one.slice_id: answers_of(one, 18)}
        decision, report = verdict_on(before, after, parts)
        (test,) = [test for test in report.tests if test.name == "file 1"]
        assert test.p_worse == pytest.approx(0.5**6)
        decisions.append((decision.decide, test.adjusted_p_worse))
    # Beside it there are the own file's losses, and then six files and all of them together.
    assert [decision for decision, _ in decisions] == ["hold", "promote"]
    assert decisions[0][1] == pytest.approx(2 * 0.5**6)
    assert decisions[1][1] > 0.05


def test_pairs_whose_chosen_answer_is_no_longer_preferred_hold() -> None:
    part = earlier(1)
    decision, report = verdict_on(
        {part.slice_id: preferring(part, 24)}, {part.slice_id: preferring(part, 12)}, [part]
    )
    assert decision.decide == "hold"
    assert "significantly worse on file 1: chosen answers preferred 100% → 50%" in decision.reason
    assert report.scores["candidate"][part.slice_id].accuracy == 0.5


def test_pairs_whose_chosen_answer_is_preferred_as_before_may_become_less_likely() -> None:
    """As both answers do when more preferences are learned; for texts the same rise is a loss."""
    parts = [earlier(1), earlier(2)]
    likely, unlikely = ({part.slice_id: preferring(part, 24, loss) for part in parts} for loss in (1.0, 3.0))
    decision, report = verdict_on(likely, unlikely, parts)
    assert decision.decide == "promote"
    assert {test.measure for test in report.tests if test.name != "own.jsonl"} == {"preference"}


def test_of_texts_there_are_losses_and_nothing_else() -> None:
    part = earlier(1)
    same = {part.slice_id: losses_of(part, [1.0] * RECORDS)}
    _, report = verdict_on(same, same, [part])
    score = report.scores["candidate"][part.slice_id]
    assert (score.records, score.loss, score.answered) == (RECORDS, 1.0, 0)
    assert (score.accuracy, score.verbatim, score.f1, score.interval, score.share_right) == (None,) * 5
    assert {test.measure for test in report.tests} == {"loss"}


def test_a_loss_that_is_no_number_holds() -> None:
    part = earlier(1)
    before = {part.slice_id: losses_of(part, [1.0] * RECORDS)}
    after = {part.slice_id: losses_of(part, [float("nan"), *[1.0] * (RECORDS - 1)])}
    decision, _ = verdict_on(before, after, [part])
    assert (decision.decide, decision.reasons) == (
        "hold",
        ("file 1: loss is not a number for 1 of 24 records",),
    )


def test_a_doubt_about_the_file_holds_and_is_the_reason() -> None:
    decision, report = verdict_on({}, {}, [], doubts=["needs a person: 30 of 40 records are copies"])
    assert decision.decide == "hold"
    assert decision.reason.startswith("needs a person: 30 of 40 records are copies; held-out loss 2.0000 → ")
    assert report.verdict.reasons == ("needs a person: 30 of 40 records are copies",)


def test_answers_that_fit_their_questions_no_better_than_others_hold() -> None:
    questions = noisy(1.0, 0.2, 3)
    decision, _ = verdict_on({}, {}, [], fit=(questions, questions))
    assert decision.decide == "hold" and "mixed up" in decision.reason
    likelier = [value + 1.0 for value in questions]
    assert verdict_on({}, {}, [], fit=(questions, likelier))[0].decide == "promote"


def test_suites_are_judged_together_and_against_the_base_as_well() -> None:
    suites = [
        Slice(name, "suite", name, tuple(Item(f"{name}{at}", [], "red", GraderSpec()) for at in range(24)))
        for name in ("easy", "hard")
    ]
    before = {suite.slice_id: answers_of(suite, 24) for suite in suites}
    after = {suite.slice_id: answers_of(suite, 12) for suite in suites}
    base = {suite.slice_id: answers_of(suite, 23) for suite in suites}
    decision, report = verdict_on(before, after, suites, base=base)
    assert decision.decide == "hold"
    tests = [(test.name, test.against, test.outcome) for test in report.tests if test.name == SUITES]
    assert tests == [(SUITES, "current", "worse"), (SUITES, "base", "worse")]
    assert [part.slice_id for part in report.slices] == ["easy", "hard"]


def test_models_are_scored_on_the_records_that_the_candidate_was_asked() -> None:
    part = earlier(1, Item)
    before, after = answers_of(part, 24), answers_of(part, 20)
    unanswered = {"answer": None, "correct": None}
    asked = [
        result.model_copy(update=unanswered) if number >= 10 else result
        for number, result in enumerate(after[:20])
    ]
    _, report = verdict_on({part.slice_id: before}, {part.slice_id: asked}, [part])
    scores = [report.scores[role][part.slice_id] for role in ("current", "candidate")]
    assert [(score.records, score.answered) for score in scores] == [(20, 10), (20, 10)]
    assert report.slices[0].records == 20


def test_a_run_that_held_nothing_out_says_so() -> None:
    measured = Measured((), {"candidate": {}, "current": {}, "base": {}}, (), (), AMOUNTS, 1.0)
    facts = Slice(OWN, "held_out", "own.jsonl", ()).facts(0)
    decision, report = judge(measured, facts, None, (), CONFIG, seed=1)
    assert (decision.decide, decision.reason) == ("promote", "no held-out records to test on")
    assert (report.slices, report.tests, report.training_seconds, report.test_seconds) == ((), (), 10.0, 1.0)
