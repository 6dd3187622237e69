"""What is shown of versions: each manifest read once, the matrix of those that were tested."""

from __future__ import annotations

from pathlib import Path

import pytest

import durable
from config import Paths
from serving.version_views import VersionIndex
from tests.training.ledger.run_folders import MORNING
from training.version_report import REPORT, SliceFacts, SliceScore, Verdict, VersionReport
from training.versions import HeldOutResult, RecordCounts, VersionFacts, VersionStore

JOB = "000001-00000000"


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def publish(paths: Paths, number: int, *, accuracy: float | None = None) -> str:
    """Publish a version, with a report of its test where it was tested."""
    store = VersionStore(paths)
    staging = store.stage()
    durable.write_bytes(staging / "adapter_model.safetensors", b"weights")
    if accuracy is not None:
        report = VersionReport(
            slices=(SliceFacts(slice_id=JOB, kind="held_out", name="a.jsonl", records=4),),
            scores={"candidate": {JOB: SliceScore(records=4, loss=0.5, accuracy=accuracy, answered=4)}},
            verdict=Verdict(decision="hold", policy="paired", reasons=("too few records",)),
        )
        durable.write_json(staging / REPORT, report.model_dump(mode="json"))
    facts = VersionFacts(
        parent=None,
        job_id=f"{number:06d}-00000000",
        input_name=f"{number}.jsonl",
        input_sha256="0" * 64,
        base_model="base",
        base_sha256="0" * 64,
        created_at=MORNING,
        config={},
        records=RecordCounts(train=8, held_out=4),
        steps=3,
        epochs=1,
        tokens=30,
        train_loss=None,
        held_out=HeldOutResult(records=4, before_loss=2.0, after_loss=1.5, interval=(-0.7, -0.3)),
        decision="hold",
        decision_reason="too few records",
    )
    return store.publish(staging, facts).name


def test_before_the_first_version_there_is_nothing(paths: Paths) -> None:
    found = VersionIndex(paths).describe()
    assert (found.current, found.versions, found.matrix) == (None, [], None)


def test_a_version_is_shown_with_its_verdict_and_losses(paths: Paths) -> None:
    name = publish(paths, 1)
    (found,) = VersionIndex(paths).describe().versions
    assert (found.name, found.decision, found.decision_reason) == (name, "hold", "too few records")
    assert (found.held_out.before_loss, found.held_out.after_loss) == (2.0, 1.5)
    assert found.held_out.interval == (-0.7, -0.3)
    assert found.train_loss is None and not found.is_current


def test_the_current_version_is_marked_when_it_moves(paths: Paths) -> None:
    index, store = VersionIndex(paths), VersionStore(paths)
    names = [publish(paths, 1), publish(paths, 2)]
    for name in names:
        store.promote(name, "for the test")
        found = index.describe()
        assert found.current == name
        assert [version.name for version in found.versions if version.is_current] == [name]


def test_the_matrix_has_a_row_for_each_version_that_was_tested(paths: Paths) -> None:
    index = VersionIndex(paths)
    publish(paths, 1)
    assert index.describe().matrix is None
    tested = publish(paths, 2, accuracy=0.75)
    matrix = index.describe().matrix
    assert matrix is not None
    assert [part.slice_id for part in matrix.slices] == [JOB]
    ((cell,),) = [row.cells for row in matrix.rows if row.version == tested]
    assert cell is not None and (cell.loss, cell.accuracy) == (0.5, 0.75)


def test_a_version_that_was_removed_is_shown_no_more(paths: Paths) -> None:
    index = VersionIndex(paths)
    name = publish(paths, 1)
    assert index.decision(name) == "hold"
    durable.remove_tree(paths.versions / name)
    assert index.decision(name) is None
    assert index.describe().versions == []


@pytest.mark.parametrize("name", [None, "", "v1", "../v0001", "current"])
def test_what_is_no_name_of_a_version_has_no_verdict(paths: Paths, name: str | None) -> None:
    publish(paths, 1)
    assert VersionIndex(paths).decision(name) is None
