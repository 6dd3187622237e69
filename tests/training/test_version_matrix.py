"""Versions against slices, with numbers reckoned by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

import durable
from training.version_facts import VersionFacts
from training.version_matrix import MatrixCell, transfer_of, version_matrix
from training.version_report import (
    REPORT,
    SliceFacts,
    SliceScore,
    TransferFacts,
    Verdict,
    VersionReport,
)
from training.versions import Version

Cells = Mapping[str, tuple[float | None, float | None]]
"""By slice: loss and accuracy."""


def score(loss: float | None, accuracy: float | None) -> SliceScore:
    return SliceScore(records=10, loss=loss, accuracy=accuracy)


def report(candidate: Cells, base: Cells | None = None, suite: str | None = None) -> VersionReport:
    """Make the report of a version that did so on these slices, its own one first."""
    slices = [SliceFacts(slice_id=job, kind="held_out", name=job, records=10) for job in candidate]
    if suite is not None:
        slices.append(SliceFacts(slice_id=suite, kind="suite", name=suite, records=10))
    return VersionReport(
        slices=tuple(slices),
        scores={
            "candidate": {job: score(*cell) for job, cell in candidate.items()},
            "base": {job: score(*cell) for job, cell in (base or {}).items()},
        },
        verdict=Verdict(decision="promote", policy="not_worse", reasons=()),
    )


def write(version: Version, made: VersionReport) -> None:
    durable.write_json(version.folder / REPORT, made.model_dump(mode="json"))


@pytest.fixture
def jobs(shelf: Any) -> dict[str, str]:
    """The job of each version: v0001, v0004, v0005 and v0006 are one lineage, v0002 was held."""
    return {version.name: version.facts.job_id for version in shelf.store.list()}


def facts_of(shelf: Any, name: str) -> VersionFacts:
    facts: VersionFacts = shelf.store.get(name).facts
    return facts


def test_without_a_tested_version_the_matrix_is_empty(shelf: Any) -> None:
    found = version_matrix(shelf.store)
    assert (found.slices, found.rows) == ((), ())


def test_a_cell_is_null_where_nothing_was_measured(shelf: Any, jobs: dict[str, str]) -> None:
    one, four, five = jobs["v0001"], jobs["v0004"], jobs["v0005"]
    write(shelf.store.get("v0001"), report({one: (1.0, 0.5)}, suite="easy-0"))
    write(shelf.store.get("v0004"), report({four: (2.0, None), one: (1.1, 0.4)}))
    write(shelf.store.get("v0005"), report({five: (None, None), four: (2.5, None)}))
    found = version_matrix(shelf.store)
    assert [part.slice_id for part in found.slices] == [one, four, five]
    assert [row.version for row in found.rows] == ["v0001", "v0004", "v0005"]
    assert [row.parent for row in found.rows] == [None, "v0001", "v0004"]
    assert [row.cells for row in found.rows] == [
        (MatrixCell(loss=1.0, accuracy=0.5), None, None),
        (MatrixCell(loss=1.1, accuracy=0.4), MatrixCell(loss=2.0, accuracy=None), None),
        (None, MatrixCell(loss=2.5, accuracy=None), MatrixCell(loss=None, accuracy=None)),
    ]


def test_without_answers_a_cell_says_how_many_were_said_word_for_word(
    shelf: Any, jobs: dict[str, str]
) -> None:
    made = report({jobs["v0001"]: (1.0, None)})
    said = made.scores["candidate"][jobs["v0001"]].model_copy(update={"verbatim": 0.25})
    write(shelf.store.get("v0001"), made.model_copy(update={"scores": {"candidate": {jobs["v0001"]: said}}}))
    ((cell,),) = [row.cells for row in version_matrix(shelf.store).rows]
    assert cell == MatrixCell(loss=1.0, accuracy=0.25)


def test_a_damaged_report_is_left_out_and_logged(
    shelf: Any, jobs: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    write(shelf.store.get("v0001"), report({jobs["v0001"]: (1.0, 0.5)}))
    durable.write_json(shelf.store.get("v0004").folder / REPORT, {"verdict": "fine"})
    assert [row.version for row in version_matrix(shelf.store).rows] == ["v0001"]
    assert "Left v0004 out of the matrix" in caplog.text


def test_transfer_is_as_reckoned_by_hand(shelf: Any, jobs: dict[str, str]) -> None:
    one, four, five = jobs["v0001"], jobs["v0004"], jobs["v0005"]
    write(shelf.store.get("v0001"), report({one: (1.0, 0.9), four: (1.0, 0.3), five: (1.0, 0.4)}))
    write(shelf.store.get("v0004"), report({one: (1.0, 0.7), four: (1.0, 0.8), five: (1.0, 0.6)}))
    base = {one: (3.0, 0.1), four: (3.0, 0.2), five: (3.0, 0.3)}
    newest = report({one: (1.0, 0.6), four: (1.0, 0.7), five: (1.0, 1.0)}, base)
    found = transfer_of(shelf.store, facts_of(shelf, "v0005"), newest)
    assert found.average_accuracy == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.3 - 0.2) + (0.6 - 0.3)) / 2)


def test_a_slice_that_has_a_loss_alone_leaves_the_others_as_they_are(
    shelf: Any, jobs: dict[str, str]
) -> None:
    one, four, five = jobs["v0001"], jobs["v0004"], jobs["v0005"]
    write(shelf.store.get("v0001"), report({one: (1.0, 0.9)}))
    write(shelf.store.get("v0004"), report({four: (2.0, None), one: (1.0, 0.8)}))
    newest = report({five: (1.0, 0.5), four: (4.0, None), one: (1.0, 0.6)})
    found = transfer_of(shelf.store, facts_of(shelf, "v0005"), newest)
    assert found.average_accuracy == pytest.approx((0.5 + 0.6) / 2)
    assert found.backward_transfer == pytest.approx(0.6 - 0.9)


def test_of_losses_alone_no_transfer_is_known(shelf: Any, jobs: dict[str, str]) -> None:
    write(shelf.store.get("v0001"), report({jobs["v0001"]: (1.0, None)}))
    newest = report({jobs["v0004"]: (1.0, None), jobs["v0001"]: (2.0, None)})
    assert transfer_of(shelf.store, facts_of(shelf, "v0004"), newest) == TransferFacts()


def test_versions_of_other_lineages_count_in_no_transfer(shelf: Any, jobs: dict[str, str]) -> None:
    one, two, four = jobs["v0001"], jobs["v0002"], jobs["v0004"]
    write(shelf.store.get("v0001"), report({one: (1.0, 0.9)}))
    write(shelf.store.get("v0002"), report({two: (1.0, 1.0), one: (1.0, 0.1)}))
    newest = report({four: (1.0, 0.5), one: (1.0, 0.8)})
    found = transfer_of(shelf.store, facts_of(shelf, "v0004"), newest)
    assert found.average_accuracy == pytest.approx((0.5 + 0.8) / 2)
    assert found.backward_transfer == pytest.approx(0.8 - 0.9)
