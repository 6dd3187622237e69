"""Every version on every held-out slice: what was learned, and what of it is still there.

Rows are versions, columns slices; a cell is what the test of that version measured, or null. Everything is
read from the versions themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from errors import IntegrityError
from evaluation.transfer import transfer
from training.version_facts import VersionFacts
from training.version_report import (
    Document,
    SliceFacts,
    SliceScore,
    TransferFacts,
    VersionReport,
    read_report,
)
from training.versions import Version, VersionStore

logger = logging.getLogger(__name__)


class MatrixCell(Document):
    """One version on one slice."""

    loss: float | None
    accuracy: float | None
    """Share of the answers graded right, or, without answers, of those said word for word."""


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
    tested = {version.name: report for version in store.list() if (report := _report_of(version)) is not None}
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
        for version in store.list()
        if version.name in tested
    )
    return VersionMatrix(slices=ordered, rows=rows)


def transfer_of(store: VersionStore, facts: VersionFacts, report: VersionReport) -> TransferFacts:
    """Return what a version that is about to be published has kept of all that its lineage learned."""
    lineage = _lineage(store, facts.parent)
    tested = [(found, version.facts.job_id) for version in lineage if (found := _report_of(version))]
    tested.append((report, facts.job_id))
    reports, jobs = [found for found, _ in tested], [job_id for _, job_id in tested]
    slices = sorted({part.slice_id for one in reports for part in one.slices if part.kind == "held_out"})
    learned = [jobs.index(slice_id) if slice_id in jobs else None for slice_id in slices]
    matrix = [_right(_candidate(one), slices) for one in reports]
    result = transfer(matrix, learned, _right(report.scores.get("base", {}), slices))
    return TransferFacts(
        average_accuracy=result.average_accuracy,
        backward_transfer=result.backward_transfer,
        forward_transfer=result.forward_transfer,
    )


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
    return None if found is None else MatrixCell(loss=found.loss, accuracy=found.share_right)


def _right(scores: Mapping[str, SliceScore], slices: Sequence[str]) -> list[float | None]:
    return [found.share_right if (found := scores.get(slice_id)) else None for slice_id in slices]
