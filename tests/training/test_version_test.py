"""A version's test that is cut off goes on where it was: nothing sealed is measured again, and the report is
the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import durable
from config import Paths, RunPaths
from tests.conftest import ROOT, LiveWorker, Workshop, chats
from tests.held_worker import SEALED_PARTS
from training.version_report import REPORT
from training.version_test import Amounts
from training.versions import VersionStore

HELD_WORKER = ROOT / "tests" / "held_worker.py"
MEASURED_BY_CLOCKS = ("training_seconds", "test_seconds", "tokens_per_second")
AMOUNTS = Amounts(
    losses=24, earlier_losses=24, suite_losses=24, answers=8, training_seconds=None, budget_seconds=0.0
)
"""Decided beforehand, since how much there is time for differs from run to run."""


@pytest.fixture(scope="module")
def tested_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, str]:
    """Return a base folder whose second version was trained and tested undisturbed, and that job."""
    shop = Workshop(tmp_path_factory.mktemp("undisturbed") / "base", tiny_model)
    settings = ("train.num_train_epochs=2", "evaluation.max_new_tokens=8", "promotion.policy=always")
    suite = shop.paths.base / "mine.jsonl"
    suite.write_text("".join(f'{{"prompt": "which {number}", "answer": "red"}}\n' for number in range(8)))
    shop.carry_out(shop.job(chats(40), *settings))
    VersionStore(shop.paths).roll_forward()
    job = shop.job(chats(40, seed=2), *settings, f"evaluation.suites=[{suite}]")
    decide_amounts(shop.folder(job))
    outcome, _ = shop.carry_out(job)
    assert outcome.version == "v0002"
    return shop.paths.base, job


@pytest.fixture
def disturbed(tested_once: tuple[Path, str], tiny_model: Path, tmp_path: Path) -> Iterator[Workshop]:
    """Copy the base folder as it was when the training had ended and the test had not begun."""
    base, job = tested_once
    shutil.copytree(base, tmp_path / "base", symlinks=True)
    shop = Workshop(tmp_path / "base", tiny_model)
    durable.remove_tree(shop.paths.versions / "v0002")
    durable.remove_tree(shop.folder(job).version_test)
    decide_amounts(shop.folder(job))
    yield shop
    shop.close()


def decide_amounts(run: RunPaths) -> None:
    durable.make_folder(run.version_test)
    durable.write_json(run.version_test / "amounts.json", AMOUNTS.model_dump(mode="json"))


def until_held(shop: Workshop, job: str) -> tuple[LiveWorker, dict[Path, int]]:
    """Start a real worker; return it in the middle of the test, and what is sealed with its times."""
    live = shop.start(job, HELD_WORKER)
    live.until(lambda event: event == {**event, "event": "note", "message": "held"})
    assert not (shop.paths.versions / "v0002").exists()
    return live, times(shop.folder(job))


def times(run: RunPaths) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.version_test.rglob("*.json*")}


def without_times(document: Any) -> Any:
    """Return a JSON document without what clocks have measured."""
    if isinstance(document, Mapping):
        return {key: without_times(value) for key, value in document.items() if key not in MEASURED_BY_CLOCKS}
    return [without_times(value) for value in document] if isinstance(document, list) else document


def go_on(shop: Workshop, job: str) -> None:
    """Let the job go on, this time to its end."""
    outcome, _ = shop.carry_out(job)
    assert (outcome.outcome, outcome.version) == ("completed", "v0002")


def assert_undisturbed(shop: Workshop, job: str, sealed: Mapping[Path, int], base: Path) -> None:
    """Compare what came of it with the undisturbed run; `sealed` must not have been written again."""
    assert {path: times(shop.folder(job))[path] for path in sealed} == sealed
    parts = {"fit.json", "amounts.json"}
    assert len([path for path in sealed if path.name not in parts]) == SEALED_PARTS
    one, other = base / "models" / "versions" / "v0002", shop.paths.versions / "v0002"
    report = durable.read_json(one / REPORT)
    assert without_times(durable.read_json(other / REPORT)) == without_times(report)
    assert report["tests"] and all(part["records"] for part in report["slices"])
    assert (durable.read_json(other / REPORT)["test_seconds"], report["test_seconds"] > 0) == (None, True)
    facts = [VersionStore(paths).get("v0002").facts for paths in (Paths(base), shop.paths)]
    for fact in ("decision", "decision_reason", "decision_reasons", "held_out", "best_checkpoint"):
        assert getattr(facts[0], fact) == getattr(facts[1], fact)


def test_a_worker_killed_in_the_middle_of_a_test_measures_only_what_is_missing(
    disturbed: Workshop, tested_once: tuple[Path, str]
) -> None:
    base, job = tested_once
    live, sealed = until_held(disturbed, job)
    live.kill()
    go_on(disturbed, job)
    assert_undisturbed(disturbed, job, sealed, base)


def test_a_worker_paused_in_the_middle_of_a_test_measures_only_what_is_missing(
    disturbed: Workshop, tested_once: tuple[Path, str]
) -> None:
    base, job = tested_once
    live, sealed = until_held(disturbed, job)
    live.tell({"command": "pause"})
    ending = live.until(lambda event: event["event"] == "outcome")
    assert ending["outcome"] == "paused"
    assert live.process.wait() == 0
    assert times(disturbed.folder(job)) == sealed
    go_on(disturbed, job)
    assert_undisturbed(disturbed, job, sealed, base)
