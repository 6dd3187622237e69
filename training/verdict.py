"""From what was measured to a decision, and to the report that goes into the version."""

from __future__ import annotations

from collections.abc import Sequence

from config import PromotionConfig
from evaluation.items import ItemResult
from training.file_doubts import unfit_answers
from training.promotion import (
    Decision,
    broken_losses,
    compare_losses,
    compare_results,
    compare_suites,
    compare_with_base,
    decide,
    held_out_change,
)
from training.slices import Slice
from training.trainer import RecordLosses
from training.version_report import (
    ModelRole,
    SliceFacts,
    SliceScore,
    SliceTest,
    Verdict,
    VersionReport,
    score,
)
from training.version_test import Measured

EARLIER, SUITES = "all earlier files", "all suites"


def judge(
    measured: Measured,
    own: SliceFacts,
    losses: tuple[RecordLosses, RecordLosses] | None,
    doubts: Sequence[str],
    config: PromotionConfig,
    seed: int,
) -> tuple[Decision, VersionReport]:
    """Decide on a candidate. `losses` are those of the run's own held-out records, before and after it."""
    before, after = ([], []) if losses is None else (losses[0].per_record, losses[1].per_record)
    change = held_out_change(before, after, config, seed)
    tests = compare_losses(own, before, after, config, seed=seed) if losses is not None else []
    broken = [change.text] if change.is_broken else []
    for part in measured.slices:
        if part.kind == "held_out":
            tests += _tests_of(part, own, measured, config, seed)
        broken += broken_losses(_facts(part, measured), measured.results["candidate"][part.slice_id])
    tests += [*_earlier_together(measured, own, config, seed), *_suites_together(measured, config, seed)]
    unfit = unfit_answers(measured.matched, measured.mismatched, config, seed)
    every_doubt = [*doubts, *([] if unfit is None else [unfit])]
    decision = decide(tests, config, change=change, broken=broken, doubts=every_doubt)
    report = VersionReport(
        slices=tuple(_facts(part, measured) for part in measured.slices),
        scores=_scores(measured, config.confidence),
        tests=decision.tests,
        verdict=Verdict(
            decision=decision.decide, policy=config.policy, reasons=decision.reasons or (decision.reason,)
        ),
        training_seconds=measured.amounts.training_seconds,
        test_seconds=measured.seconds,
    )
    return decision, report


def _tests_of(
    part: Slice, own: SliceFacts, measured: Measured, config: PromotionConfig, seed: int
) -> list[SliceTest]:
    current, candidate = (measured.results[role][part.slice_id] for role in ("current", "candidate"))
    is_own = part.slice_id == own.slice_id  # whose losses the trainer has measured, on all its records
    return compare_results(
        _facts(part, measured), current, candidate, config, seed=seed, with_losses=not is_own
    )


def _earlier_together(
    measured: Measured, own: SliceFacts, config: PromotionConfig, seed: int
) -> list[SliceTest]:
    """Test the records of all earlier files as one slice: damage spread thin shows in no single one."""
    ids = [part.slice_id for part in measured.slices if part.kind == "held_out"]
    earlier = [slice_id for slice_id in ids if slice_id != own.slice_id]
    if len(earlier) < 2:
        return []
    current, candidate = (_together(measured, role, earlier) for role in ("current", "candidate"))
    facts = SliceFacts(slice_id="earlier", kind="held_out", name=EARLIER, records=len(candidate))
    return compare_results(facts, current, candidate, config, seed=seed)


def _suites_together(measured: Measured, config: PromotionConfig, seed: int) -> list[SliceTest]:
    """Test the items of all suites as one slice, against the model before and against the base."""
    suites = [part.slice_id for part in measured.slices if part.kind == "suite"]
    candidate, current, base = (
        _together(measured, role, suites) for role in ("candidate", "current", "base")
    )
    if not candidate:
        return []
    facts = SliceFacts(slice_id="suites", kind="suite", name=SUITES, records=len(candidate))
    tests = compare_suites(facts, current, candidate, config, seed=seed)
    if measured.results["current"] is not measured.results["base"]:
        tests += compare_with_base(facts, base, current, candidate, config, seed=seed)
    return tests


def _together(measured: Measured, role: ModelRole, slice_ids: Sequence[str]) -> list[ItemResult]:
    """Return the results of a model on several slices; an item of each slice is one of its own."""
    return [
        result.model_copy(update={"item_id": f"{slice_id}/{result.item_id}"})
        for slice_id in slice_ids
        for result in measured.results[role][slice_id]
    ]


def _facts(part: Slice, measured: Measured) -> SliceFacts:
    return part.facts(len(measured.results["candidate"][part.slice_id]))


def _scores(measured: Measured, confidence: float) -> dict[ModelRole, dict[str, SliceScore]]:
    """Score every model on the records that the candidate was asked, so that the numbers compare."""
    return {
        role: {
            slice_id: score(_as_asked(results, measured.results["candidate"][slice_id]), confidence)
            for slice_id, results in by_slice.items()
        }
        for role, by_slice in measured.results.items()
    }


def _as_asked(results: Sequence[ItemResult], asked: Sequence[ItemResult]) -> list[ItemResult]:
    """Return the results on the records asked, without answers to what the candidate did not answer."""
    unanswered = dict.fromkeys(("answer", "correct", "score", "f1", "answer_tokens", "seconds"))
    is_answered = {result.item_id: result.answer is not None for result in asked}
    return [
        result if is_answered[result.item_id] else result.model_copy(update=unanswered)
        for result in results
        if result.item_id in is_answered
    ]
