"""Versions against slices, with numbers reckoned by hand, from reports and results as a test leaves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

import durable
from config import PromotionConfig
from evaluation.items import ItemResult, Passage
from training.slices import Slice
from training.verdict import judge
from training.version_matrix import MatrixCell, transfer_of, version_matrix
from training.version_report import (
    REPORT,
    RESULTS,
    ModelRole,
    Settings,
    TransferFacts,
    VersionReport,
    results_file,
    write_results,
)
from training.version_test import Amounts, Measured
from training.versions import Version

RECORDS = 10
SETTINGS = Settings(base_sha256="ab" * 32, precision="float32", max_new_tokens=32)
AMOUNTS = Amounts(
    losses=10, earlier_losses=10, suite_losses=10, answers=10, training_seconds=9.0, budget_seconds=2.0
)
SUITE = "easy-0"
Measurements = Mapping[str, Sequence[ItemResult]]
"""By slice: what a model made of its records."""


def asked(
    *, said: int | None = None, right: int | None = None, answered: int = RECORDS, count: int = RECORDS
) -> list[ItemResult]:
    """Let a model say the expected answers of the first `said` records word for word, and of the first
    `answered` ones answer the first `right` right; None measures nothing of the kind."""
    return [
        ItemResult(
            item_id=f"item-{number}",
            grader="exact",
            expected="red",
            loss_sum=1.0,
            loss_tokens=1,
            says_expected=None if said is None else number < said,
            answer=None if right is None or number >= answered else "red",
            correct=None if right is None or number >= answered else number < right,
        )
        for number in range(count)
    ]


def pairs(preferred: int) -> list[ItemResult]:
    """Let a model find the chosen answers of the first `preferred` pairs likelier than the rejected ones."""
    return [
        ItemResult(item_id=f"pair-{number}", loss_sum=1.0, loss_tokens=1, prefers_expected=number < preferred)
        for number in range(RECORDS)
    ]


def texts(loss: float | None) -> list[ItemResult]:
    tokens = None if loss is None else 1
    return [ItemResult(item_id=f"text-{number}", loss_sum=loss, loss_tokens=tokens) for number in range(3)]


def examine(
    version: Version,
    candidate: Measurements,
    *,
    current: Measurements | None = None,
    base: Measurements | None = None,
    settings: Settings = SETTINGS,
) -> VersionReport:
    """Leave in a version what its test leaves there: a report, and results of each model on each slice.

    The first slice of `candidate` is the version's own. A model of which nothing is said is as the candidate.
    """
    slices = tuple(
        Slice(
            *(name, "suite" if name == SUITE else "held_out", name),
            tuple(Passage(result.item_id) for result in results),
        )
        for name, results in candidate.items()
    )
    measured: dict[ModelRole, Measurements] = {"candidate": candidate, "base": base or candidate}
    if version.facts.parent is not None:
        measured["current"] = current or candidate
    for role, by_slice in measured.items():
        for name, results in by_slice.items():
            write_results(results_file(version.folder / RESULTS, role, name), settings, results)
    everything = Measured(
        *(slices, {"current": measured["base"], **measured}, (), (), AMOUNTS, 1.0),
    )
    _, report = judge(everything, slices[0].facts(0), None, (), PromotionConfig(), 0)
    durable.write_json(version.folder / REPORT, report.model_dump(mode="json"))
    return report


def transfer(shelf: Any, version: Version, report: VersionReport) -> TransferFacts:
    return transfer_of(shelf.store, version.facts, report, version.folder / RESULTS)


@pytest.fixture
def lineage(shelf: Any) -> list[Version]:
    """Three versions, each of which continues the one before."""
    return [shelf.store.get(name) for name in ("v0001", "v0004", "v0005")]


@pytest.fixture
def jobs(lineage: list[Version]) -> list[str]:
    return [version.facts.job_id for version in lineage]


def test_without_a_tested_version_the_matrix_is_empty(shelf: Any) -> None:
    found = version_matrix(shelf.store)
    assert (found.slices, found.rows) == ((), ())


def test_a_cell_tells_its_measure_and_of_how_many_records_and_is_null_where_nothing_was_measured(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, three = jobs
    examine(lineage[0], {one: asked(said=2, right=3, answered=4), SUITE: asked(said=1)})
    examine(lineage[1], {two: texts(2.0), one: asked(said=4)})
    examine(lineage[2], {three: texts(None), two: texts(2.5), one: pairs(7)})
    found = version_matrix(shelf.store)
    assert [part.slice_id for part in found.slices] == [one, two, three]
    assert [row.version for row in found.rows] == ["v0001", "v0004", "v0005"]
    assert [row.parent for row in found.rows] == [None, "v0001", "v0004"]
    assert [row.cells for row in found.rows] == [
        (MatrixCell(loss=1.0, accuracy=0.75, measure="answers", records=4), None, None),
        (
            MatrixCell(loss=1.0, accuracy=0.4, measure="verbatim", records=10),
            MatrixCell(loss=2.0, accuracy=None, measure="loss", records=3),
            None,
        ),
        (
            MatrixCell(loss=1.0, accuracy=0.7, measure="preference", records=10),
            MatrixCell(loss=2.5, accuracy=None, measure="loss", records=3),
            MatrixCell(loss=None, accuracy=None, measure=None, records=None),
        ),
    ]


def test_words_said_are_counted_without_the_records_that_nobody_can_be_asked_for(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    examine(lineage[0], {jobs[0]: [*asked(said=5), *texts(1.0)]})
    ((cell,),) = [row.cells for row in version_matrix(shelf.store).rows]
    assert cell == MatrixCell(loss=1.0, accuracy=0.5, measure="verbatim", records=10)


def test_a_damaged_report_is_left_out_and_logged(
    shelf: Any, lineage: list[Version], jobs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    examine(lineage[0], {jobs[0]: asked(right=5)})
    durable.write_json(lineage[1].folder / REPORT, {"verdict": "fine"})
    assert [row.version for row in version_matrix(shelf.store).rows] == ["v0001"]
    assert "Left v0004 out of the matrix" in caplog.text


# --- what a lineage kept


def test_what_was_forgotten_is_the_mean_change_since_each_file_was_learned(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, three = jobs
    examine(lineage[0], {one: asked(right=9)})
    examine(lineage[1], {two: asked(right=8), one: asked(right=7)})
    newest = examine(lineage[2], {three: asked(right=10), two: asked(right=7), one: asked(right=6)})
    found = transfer(shelf, lineage[2], newest)
    assert found.average_accuracy == pytest.approx((1.0 + 0.7 + 0.6) / 3)
    assert found.average_measures == ("answers",)
    assert found.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)


def test_answers_are_not_set_against_words_said(shelf: Any, lineage: list[Version], jobs: list[str]) -> None:
    one, two, _ = jobs
    examine(lineage[0], {one: asked(right=9, said=4)})
    newest = examine(lineage[1], {two: asked(said=5), one: asked(said=3)})
    assert transfer(shelf, lineage[1], newest).backward_transfer == pytest.approx(0.3 - 0.4)
    examine(lineage[0], {one: asked(right=9)})
    assert transfer(shelf, lineage[1], newest).backward_transfer is None


def test_only_records_that_both_versions_were_measured_on_are_compared(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, _ = jobs
    examine(lineage[0], {one: asked(right=4, said=10)})
    newest = examine(lineage[1], {two: asked(right=5), one: asked(right=3, answered=4, said=0)})
    assert transfer(shelf, lineage[1], newest).backward_transfer == pytest.approx((3 - 4) / 4)
    newest = examine(lineage[1], {two: asked(right=5), one: asked(right=4, count=5)})
    assert transfer(shelf, lineage[1], newest).backward_transfer == 0.0


def test_results_under_other_settings_or_of_another_question_are_not_compared(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, _ = jobs
    newest = examine(lineage[1], {two: asked(right=5), one: asked(right=3)})
    examine(lineage[0], {one: asked(right=9)}, settings=SETTINGS.model_copy(update={"max_new_tokens": 4}))
    assert transfer(shelf, lineage[1], newest).backward_transfer is None
    blue = [result.model_copy(update={"expected": "blue"}) for result in asked(right=9)]
    examine(lineage[0], {one: blue})
    assert transfer(shelf, lineage[1], newest).backward_transfer is None
    examine(lineage[0], {one: asked(right=9)}, settings=SETTINGS.model_copy(update={"base_sha256": "merged"}))
    assert transfer(shelf, lineage[1], newest).backward_transfer == pytest.approx(0.3 - 0.9)


def test_preferences_are_forgotten_too_and_losses_alone_tell_nothing(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, three = jobs
    examine(lineage[0], {one: pairs(9)})
    examine(lineage[1], {two: texts(1.0), one: pairs(8)})
    newest = examine(lineage[2], {three: texts(1.0), two: texts(4.0), one: pairs(6)})
    found = transfer(shelf, lineage[2], newest)
    assert (found.average_accuracy, found.average_measures) == (0.6, ("preference",))
    assert found.backward_transfer == pytest.approx(0.6 - 0.9)


def test_of_losses_alone_no_transfer_is_known(shelf: Any, lineage: list[Version], jobs: list[str]) -> None:
    examine(lineage[0], {jobs[0]: texts(1.0)})
    newest = examine(lineage[1], {jobs[1]: texts(1.0), jobs[0]: texts(2.0)})
    assert transfer(shelf, lineage[1], newest) == TransferFacts()


def test_an_average_has_one_measure_of_conversations_and_says_which(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, three = jobs
    own = {three: asked(right=9, said=6)}
    answered = examine(lineage[2], {**own, two: asked(right=7, said=1), one: pairs(8), SUITE: asked(said=0)})
    found = transfer(shelf, lineage[2], answered)
    assert found.average_accuracy == pytest.approx((0.9 + 0.7 + 0.8) / 3)
    assert found.average_measures == ("answers", "preference")
    partly = examine(lineage[2], {**own, two: asked(said=1)})
    found = transfer(shelf, lineage[2], partly)
    assert found.average_accuracy == pytest.approx((0.6 + 0.1) / 2)
    assert found.average_measures == ("verbatim",)


def test_damaged_results_are_left_out_and_logged(
    shelf: Any, lineage: list[Version], jobs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = jobs
    examine(lineage[0], {one: asked(right=9)})
    examine(lineage[1], {two: asked(right=8), one: asked(right=9)})
    newest = examine(lineage[2], {three: asked(right=9), two: asked(right=7), one: asked(right=5)})
    file = results_file(lineage[0].folder / RESULTS, "candidate", one)
    file.write_bytes(b"\n")
    assert transfer(shelf, lineage[2], newest).backward_transfer == pytest.approx(0.7 - 0.8)
    assert f"Left a slice out of the transfer: {file}" in caplog.text


def test_versions_of_other_lineages_count_in_no_transfer(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, _ = jobs
    held = shelf.store.get("v0002")
    examine(lineage[0], {one: asked(right=9)})
    examine(held, {held.facts.job_id: asked(right=10), one: asked(right=1)})
    newest = examine(lineage[1], {two: asked(right=5), one: asked(right=8)})
    found = transfer(shelf, lineage[1], newest)
    assert found.average_accuracy == pytest.approx((0.5 + 0.8) / 2)
    assert found.backward_transfer == pytest.approx(0.8 - 0.9)


# --- what a lineage knew before


def test_what_was_known_before_a_file_is_the_lead_over_the_base_on_its_own_records(
    shelf: Any, lineage: list[Version], jobs: list[str]
) -> None:
    one, two, three = jobs
    first = examine(lineage[0], {one: asked(right=9)}, base={one: asked(right=1)})
    assert transfer(shelf, lineage[0], first).forward_transfer is None
    examine(
        lineage[1],
        {two: asked(right=8), one: asked(right=7)},
        current={two: asked(right=3), one: asked(right=9)},
        base={two: asked(right=2), one: asked(right=1)},
    )
    newest = examine(
        lineage[2],
        {three: asked(right=10), two: asked(right=7), one: asked(right=6)},
        current={three: asked(right=6), two: asked(right=8), one: asked(right=7)},
        base={three: asked(right=3), two: asked(right=2), one: asked(right=1)},
    )
    found = transfer(shelf, lineage[2], newest)
    assert found.forward_transfer == pytest.approx(((0.3 - 0.2) + (0.6 - 0.3)) / 2)


def test_a_base_that_others_were_merged_into_is_not_untrained(shelf: Any) -> None:
    merged = shelf.add(parent="v0001", consolidated="v0001")
    own = merged.facts.job_id
    report = examine(
        *(merged, {own: asked(right=9)}), current={own: asked(right=5)}, base={own: asked(right=4)}
    )
    assert transfer(shelf, merged, report).forward_transfer is None
