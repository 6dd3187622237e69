"""Every version on every held-out slice: what was learned, and what of it is still there.

Rows are versions, columns slices; a cell is what the test of that version measured, or null. Everything is
read from the versions themselves. The numbers of a lineage are those of `evaluation.transfer`, each change
reckoned on the records that both sides were measured on, by a measure that both have.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from errors import IntegrityError
from evaluation.items import ItemResult
from training.version_facts import VersionFacts
from training.version_report import (
    RESULTS,
    Document,
    Measure,
    Settings,
    SliceFacts,
    SliceScore,
    TransferFacts,
    VersionReport,
    read_report,
    read_results,
    results_file,
    settings_of,
)
from training.versions import Version, VersionStore

logger = logging.getLogger(__name__)

_SHARES = ("correct", "prefers_expected", "says_expected")
"""What of a result is right or wrong; a change is of the first that both sides have."""


class MatrixCell(Document):
    """One version on one slice."""

    loss: float | None
    accuracy: float | None
    """Share of `records` that are right by `measure`; null where there are losses alone."""
    measure: Measure | None
    """What the cell is of; null where nothing was measured."""
    records: int | None
    """Of how many records."""


class MatrixRow(TransferFacts):
    """One version on all slices, and what its lineage kept up to it."""

    version: str
    parent: str | None
    decision: str
    cells: tuple[MatrixCell | None, ...]


class VersionMatrix(Document):
    """All versions on all slices, oldest first."""

    slices: tuple[SliceFacts, ...] = ()
    rows: tuple[MatrixRow, ...] = ()


def version_matrix(store: VersionStore) -> VersionMatrix:
    """Return the matrix of every version that was tested; a damaged report is logged and left out."""
    versions = store.list()
    tested = {version.name: report for version in versions if (report := _report_of(version)) is not None}
    slices = {
        part.slice_id: part for report in tested.values() for part in report.slices if part.kind == "held_out"
    }
    ordered = tuple(slices[slice_id] for slice_id in sorted(slices))
    rows = tuple(
        MatrixRow(
            version=version.name,
            parent=version.facts.parent,
            decision=version.facts.decision,
            cells=tuple(_cell(_candidate(tested[version.name]).get(part.slice_id)) for part in ordered),
            **tested[version.name].transfer.model_dump(),
        )
        for version in versions
        if version.name in tested
    )
    return VersionMatrix(slices=ordered, rows=rows)


def transfer_of(
    store: VersionStore, facts: VersionFacts, report: VersionReport, results: Path
) -> TransferFacts:
    """Return what a version that is about to be published has kept of all that its lineage learned.

    `results` is the folder with the single results of its test.
    """
    lineage = _lineage(store, facts.parent)
    average, measures = _average(report)
    leads = [_lead(version.facts, version.folder / RESULTS) for version in lineage]
    return TransferFacts(
        average_accuracy=average,
        average_measures=measures,
        backward_transfer=_mean(_since_learned(version, results) for version in lineage),
        forward_transfer=_mean([*leads, _lead(facts, results)]),
    )


def _average(report: VersionReport) -> tuple[float | None, tuple[Measure, ...]]:
    """Return the mean share right over the held-out slices, and what it is of.

    Conversations count by their answers if those of every slice were graded, else all by words said.
    """
    candidate = _candidate(report)
    held_out = [part.slice_id for part in report.slices if part.kind == "held_out"]
    scores = [found for slice_id in held_out if (found := candidate.get(slice_id)) is not None]
    are_answered = all(found.measure != "verbatim" for found in scores)
    shares: list[tuple[Measure, float | None]] = []
    for found in scores:
        if found.measure == "preference" or (found.measure == "answers" and are_answered):
            shares.append((found.measure, found.accuracy))
        elif found.verbatim is not None:
            shares.append(("verbatim", found.verbatim))
    return _mean(share for _, share in shares), tuple(sorted({measure for measure, _ in shares}))


def _since_learned(learner: Version, results: Path) -> float | None:
    """Return how the share right on a version's own held-out records has changed since that version."""
    slice_id = learner.facts.job_id
    return _change(
        results_file(learner.folder / RESULTS, "candidate", slice_id),
        results_file(results, "candidate", slice_id),
    )


def _lead(learner: VersionFacts, results: Path) -> float | None:
    """Return by how much the model before a version led the base on what that version was to learn.

    None for a first version, which began with the base, and for one on a merged base, which is not untrained.
    """
    if learner.parent is None or learner.consolidated is not None:
        return None
    return _change(
        results_file(results, "base", learner.job_id), results_file(results, "current", learner.job_id)
    )


def _change(before: Path, after: Path) -> float | None:
    """Return the change of the share right from one file of results to another, on the records of both.

    None where they have no records with a measure in common, were got under settings that differ in more
    than the base, or are damaged, which is logged.
    """
    try:
        if not _are_alike(settings_of(before), settings_of(after)):
            return None
        known = {result.item_id: result for result in read_results(before)}
        pairs = [(known[two.item_id], two) for two in read_results(after) if two.item_id in known]
    except IntegrityError as error:
        logger.error("Left a slice out of the transfer: %s", error)
        return None
    return _difference([pair for pair in pairs if _is_same_question(*pair)])


def _are_alike(one: Settings | None, other: Settings | None) -> bool:
    if one is None or other is None:
        return False
    return one == other.model_copy(update={"base_sha256": one.base_sha256})


def _is_same_question(one: ItemResult, other: ItemResult) -> bool:
    return (one.expected, one.grader) == (other.expected, other.grader)


def _difference(pairs: Sequence[tuple[ItemResult, ItemResult]]) -> float | None:
    """Return the change by the first measure that both results of some pair have."""
    for measure in _SHARES:
        known = [(getattr(one, measure), getattr(other, measure)) for one, other in pairs]
        changes = [int(after) - int(before) for before, after in known if None not in (before, after)]
        if changes:
            return sum(changes) / len(changes)
    return None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _lineage(store: VersionStore, name: str | None) -> list[Version]:
    """Return the versions that one continues, oldest first, as far as they are still there."""
    known = {version.name: version for version in store.list()}
    found: list[Version] = []
    while name in known:
        found.append(known.pop(name))
        name = found[-1].facts.parent
    return found[::-1]


def _report_of(version: Version) -> VersionReport | None:
    try:
        return read_report(version.folder)
    except IntegrityError as error:
        logger.error("Left %s out of the matrix: %s", version.name, error)
        return None


def _candidate(report: VersionReport) -> Mapping[str, SliceScore]:
    return report.scores.get("candidate", {})


def _cell(found: SliceScore | None) -> MatrixCell | None:
    if found is None:
        return None
    return MatrixCell(
        loss=found.loss, accuracy=found.share_right, measure=found.measure, records=found.measured
    )
