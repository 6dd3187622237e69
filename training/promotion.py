"""Promote or hold: paired tests of a candidate on every slice, all slices together, and their verdict.

Pure: results go in, a decision with its reasons comes out. A candidate is held when it got significantly
worse anywhere, when its file gave reason to doubt it, or when the policy wants more than no harm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from config import PromotionConfig
from evaluation.comparison import Difference, holm, mcnemar_exact, noise_floor, paired_bootstrap
from evaluation.items import ItemResult
from training.version_report import Measure, SliceFacts, SliceTest

Against = Literal["current", "base"]

_MEASURE_WORDS: dict[Measure, str] = {
    "loss": "loss",
    "verbatim": "expected answers said word for word",
    "answers": "right answers",
    "preference": "chosen answers preferred",
}


@dataclass(frozen=True)
class Change:
    """Held-out losses of the run's own file before and after it, in nats per token.

    `mean_difference` and `interval` are of after - before, so that negative is better; None where a loss is
    no number.
    """

    text: str
    mean_difference: float | None = None
    interval: tuple[float, float] | None = None
    is_broken: bool = False
    """Whether a loss of the candidate is no number."""


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes current, and the numbers that say so."""

    decide: Literal["promote", "hold"]
    reason: str
    """One sentence for lists and logs."""
    reasons: tuple[str, ...] = ()
    """Everything that speaks against it, each with its numbers."""
    tests: tuple[SliceTest, ...] = ()
    mean_difference: float | None = None
    interval: tuple[float, float] | None = None


def compare_losses(
    facts: SliceFacts, before: Sequence[float], after: Sequence[float], config: PromotionConfig, *, seed: int
) -> list[SliceTest]:
    """Test the losses of the same records; no test where the model before gave none to compare with.

    A rise counts from `promotion.tolerance` on. The noise floor is told beside it and not added to it: it is
    of other records being drawn, and here both models answer the same ones.
    """
    pairs = [pair for pair in zip(before, after, strict=True) if all(map(math.isfinite, pair))]
    if not pairs:
        return []
    old, new = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    worse = _bootstrap(old, new, config, seed, "worse", config.tolerance)
    return [
        SliceTest(
            slice_id=facts.slice_id,
            name=facts.name,
            against="current",
            measure="loss",
            records=len(pairs),
            before=math.fsum(old) / len(old),
            after=math.fsum(new) / len(new),
            difference=worse.mean,
            interval=worse.interval,
            margin=config.tolerance,
            noise_floor=noise_floor(old, confidence=config.confidence, seed=seed),
            p_worse=worse.p_value,
            p_better=_bootstrap(old, new, config, seed, "better", 0.0).p_value,
        )
    ]


def compare_results(
    facts: SliceFacts,
    before: Sequence[ItemResult],
    after: Sequence[ItemResult],
    config: PromotionConfig,
    *,
    seed: int,
    with_losses: bool = True,
) -> list[SliceTest]:
    """Test all that two models have in common on held-out records: losses, words said, answers given or
    preferred.

    What a preference taught is which answer is likelier, not how likely: learning from more of them makes
    both answers less likely, so the loss of a preferred answer is no test.
    """
    pairs = _pairs(before, after)
    tests = []
    if with_losses:
        losses = [
            (one.loss, two.loss)
            for one, two in pairs
            if one.loss is not None and two.loss is not None and two.prefers_expected is None
        ]
        tests += compare_losses(
            facts, [pair[0] for pair in losses], [pair[1] for pair in losses], config, seed=seed
        )
    said = [(one.says_expected, two.says_expected) for one, two in pairs]
    graded = [(one.correct, two.correct) for one, two in pairs]
    preferred = [(one.prefers_expected, two.prefers_expected) for one, two in pairs]
    return [
        *tests,
        *_compare_right(facts, "verbatim", said),
        *_compare_right(facts, "answers", graded),
        *_compare_right(facts, "preference", preferred),
    ]


def compare_suites(
    facts: SliceFacts,
    before: Sequence[ItemResult],
    after: Sequence[ItemResult],
    config: PromotionConfig,
    *,
    seed: int,
    against: Against = "current",
) -> list[SliceTest]:
    """Test the items of all suites together, by right answers alone.

    What is learned changes how a model puts things, and with it the loss of words that a suite's author
    happened to choose: that is no skill lost. An item that was not answered is right when its expected
    answer would have been said. A loss counts where it is significant beyond `promotion.suite_tolerance`.
    """
    pairs = _pairs(before, after)
    right = [
        (one.says_expected, two.says_expected)
        if one.correct is None or two.correct is None
        else (one.correct, two.correct)
        for one, two in pairs
    ]
    tests = _compare_right(facts, "answers", right, against)
    known = [pair for pair in right if None not in pair]
    margin = config.suite_tolerance / 100
    return [
        test.model_copy(
            update={
                "margin": margin,
                "p_worse": max(
                    test.p_worse,
                    _bootstrap(
                        [float(not one) for one, _ in known],
                        [float(not two) for _, two in known],
                        *(config, seed, "worse", margin),
                    ).p_value,
                ),
            }
        )
        for test in tests
    ]


def compare_with_base(
    facts: SliceFacts,
    base: Sequence[ItemResult],
    before: Sequence[ItemResult],
    after: Sequence[ItemResult],
    config: PromotionConfig,
    *,
    seed: int,
) -> list[SliceTest]:
    """Test whether a candidate falls behind the base where the model before had not: slow decay adds up.

    What had fallen behind earlier, and was promoted nevertheless, is not held against the candidate.
    """
    earlier = compare_suites(facts, base, before, config, seed=seed)
    if any(test.p_worse < 1 - config.confidence for test in earlier):
        return []
    return compare_suites(facts, base, after, config, seed=seed, against="base")


def broken_losses(facts: SliceFacts, results: Sequence[ItemResult]) -> list[str]:
    """Say on how many records a candidate's loss is no number."""
    broken = sum(
        result.loss_tokens is not None and (result.loss is None or not math.isfinite(result.loss))
        for result in results
    )
    return [f"{facts.name}: loss is not a number for {broken} of {len(results)} records"] if broken else []


def held_out_change(
    before: Sequence[float], after: Sequence[float], config: PromotionConfig, seed: int
) -> Change:
    """Describe how the losses of the file's own held-out records changed."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} losses before and {len(after)} after are not of the same records")
    if not before:
        return Change("no held-out records to test on")
    broken = sum(not math.isfinite(loss) for loss in after)
    if broken:
        text = f"held-out loss is not a number for {broken} of {len(after)} records"
        return Change(text, is_broken=True)
    if not all(map(math.isfinite, before)):
        return Change("held-out loss is finite, and was not before")
    found = paired_bootstrap(before, after, confidence=config.confidence, seed=seed)
    low, high = found.interval
    return Change(
        f"held-out loss {math.fsum(before) / len(before):.4f} → {math.fsum(after) / len(after):.4f} on "
        f"{len(after)} records ({found.mean:+.4f}, {100 * config.confidence:g} % interval {low:+.4f} to "
        f"{high:+.4f})",
        found.mean,
        found.interval,
    )


def decide(
    tests: Sequence[SliceTest],
    config: PromotionConfig,
    *,
    change: Change,
    broken: Sequence[str] = (),
    doubts: Sequence[str] = (),
) -> Decision:
    """Weigh all tests of a candidate together.

    `broken` are losses that are no numbers, `doubts` what was found out about the file. The tests of all
    slices are corrected for being many, so that a version that is no worse is held in at most
    1 - `promotion.confidence` of all cases.
    """
    judged = _judged(tests, config.confidence)
    worse = [_in_words(test) for test in judged if test.outcome == "worse"]
    against = [*broken, *worse, *doubts]
    is_better = any(test.outcome == "better" and test.against == "current" for test in judged)
    decision: Literal["promote", "hold"] = "promote"
    reason = change.text
    match config.policy:
        case "always":
            reason += "; promotion.policy is always"
        case "manual":
            decision, reason = "hold", f"{reason}; promotion.policy is manual: a person decides"
        case _ if against:
            decision = "hold"
        case "better" if not is_better:
            decision = "hold"
            reason += "; promotion.policy is better, and nothing got significantly better"
    if against:
        more = f" (and {len(against) - 1} more)" if len(against) > 1 else ""
        reason = f"{against[0]}{more}; {reason}"
    return Decision(decision, reason, tuple(against), judged, change.mean_difference, change.interval)


def _judged(tests: Sequence[SliceTest], confidence: float) -> tuple[SliceTest, ...]:
    """Return the tests with their p-values corrected for all of them, and what they say.

    A test that could not come out as "worse", however bad the candidate, is none: the others need not be
    corrected for it. Which ones these are hangs on the model before alone, so that no error is hidden.
    """
    alpha = 1 - confidence
    telling = iter(holm([test.p_worse for test in tests if _could_be_worse(test, alpha)]))
    worse = [next(telling) if _could_be_worse(test, alpha) else 1.0 for test in tests]
    better = holm([test.p_better for test in tests])
    judged = []
    for test, p_worse, p_better in zip(tests, worse, better, strict=True):
        outcome: Literal["worse", "better", "no difference"] = (
            "worse" if p_worse < alpha else "better" if p_better < alpha else "no difference"
        )
        fields = {"adjusted_p_worse": p_worse, "adjusted_p_better": p_better, "outcome": outcome}
        judged.append(test.model_copy(update=fields))
    return tuple(judged)


def _could_be_worse(test: SliceTest, alpha: float) -> bool:
    """Tell whether losing every right answer would be significant: where few are right, few can be lost.

    A rise of losses may be, however few there are, but for a single one.
    """
    if test.measure == "loss":
        return test.records > 1
    right = round(test.before * test.records)
    return bool(0.5**right < alpha)


def _pairs(before: Sequence[ItemResult], after: Sequence[ItemResult]) -> list[tuple[ItemResult, ItemResult]]:
    known = {result.item_id: result for result in before}
    return [(known[result.item_id], result) for result in after if result.item_id in known]


def _compare_right(
    facts: SliceFacts,
    measure: Measure,
    pairs: Sequence[tuple[bool | None, bool | None]],
    against: Against = "current",
) -> list[SliceTest]:
    known = [(one, two) for one, two in pairs if one is not None and two is not None]
    if not known:
        return []
    before, after = [pair[0] for pair in known], [pair[1] for pair in known]
    worse = mcnemar_exact(before, after, "worse")
    shares = sum(before) / len(known), sum(after) / len(known)
    return [
        SliceTest(
            slice_id=facts.slice_id,
            name=facts.name,
            against=against,
            measure=measure,
            records=len(known),
            before=shares[0],
            after=shares[1],
            difference=shares[1] - shares[0],
            gained=worse.gained,
            lost=worse.lost,
            p_worse=worse.p_value,
            p_better=mcnemar_exact(before, after, "better").p_value,
        )
    ]


def _bootstrap(
    old: Sequence[float],
    new: Sequence[float],
    config: PromotionConfig,
    seed: int,
    alternative: Literal["worse", "better"],
    margin: float,
) -> Difference:
    return paired_bootstrap(
        *(old, new), confidence=config.confidence, seed=seed, alternative=alternative, margin=margin
    )


def _in_words(test: SliceTest) -> str:
    than = "" if test.against == "current" else " than the base"
    words = _MEASURE_WORDS[test.measure]
    if test.measure == "loss":
        numbers = (
            f"{test.before:.4f} → {test.after:.4f} on {test.records} records "
            f"({test.difference:+.4f}, tolerated {test.margin:+.4f}"
        )
    else:
        numbers = (
            f"{test.before:.0%} → {test.after:.0%} of {test.records} records "
            f"({test.lost} lost, {test.gained} gained"
            + (f", tolerated {100 * test.margin:g} points" if test.margin else "")
        )
    return (
        f"significantly worse{than} on {test.name}: {words} {numbers}, "
        f"p {test.adjusted_p_worse:.2g} after correction)"
    )
