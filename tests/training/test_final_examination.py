"""What was trained is tested on all that was held out and on the suites; the report lies in the version."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable import verify_folder
from tests.conftest import CORPUS
from training.slices import earlier_slices, every_held_out_slice
from training.version_matrix import version_matrix
from training.version_report import VersionReport, read_report
from training.versions import VersionStore

Records = Callable[..., list[dict[str, Any]]]
STEPS = ("train.num_train_epochs=1", "evaluation.max_new_tokens=8")


@pytest.fixture
def suite(workshop: Any) -> Path:
    """Write a suite of the user's into the base folder."""
    file: Path = workshop.paths.base / "mine.jsonl"
    lines = [{"prompt": f"which {number}", "answer": "red"} for number in range(5)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def texts_of(words: list[str], count: int) -> list[dict[str, Any]]:
    """Make texts of some words, each different from the others."""
    draw = random.Random(0)
    return [{"text": " ".join([*draw.choices(words, k=12), str(number)])} for number in range(count)]


def report_of(workshop: Any, name: str) -> VersionReport:
    report = read_report(workshop.paths.versions / name)
    assert report is not None
    return report


@pytest.mark.config_key("evaluation.suites")
def test_each_version_is_tested_on_what_was_held_out_so_far_and_on_the_suites(
    workshop: Any, make_chats: Records, suite: Path
) -> None:
    first = workshop.job(make_chats(40), *STEPS, "evaluation.suites=[mine.jsonl]", "promotion.policy=always")
    workshop.carry_out(first)
    VersionStore(workshop.paths).roll_forward()
    second = workshop.job(make_chats(40, seed=2), *STEPS, "evaluation.suites=[]")
    workshop.carry_out(second)

    one, two = report_of(workshop, "v0001"), report_of(workshop, "v0002")
    assert [(part.kind, part.slice_id.rpartition("-")[0] or part.name) for part in one.slices] == [
        ("held_out", first.rpartition("-")[0]),
        ("suite", "mine"),
    ]
    assert [part.slice_id for part in two.slices] == [second, first]
    assert set(two.scores) == {"candidate", "current", "base"}
    assert all(set(scores) == {first, second} for scores in two.scores.values())
    # What the version before had measured of itself, and of the base, was not measured again.
    assert two.scores["current"][first].loss == one.scores["candidate"][first].loss
    assert two.scores["base"][first].loss == one.scores["base"][first].loss
    assert one.scores["current"] == one.scores["base"]

    verify_folder(workshop.paths.versions / "v0001")
    card = (workshop.paths.versions / "v0001" / "README.md").read_text()
    assert "## Tested" in card and "`mine`" in card
    results = (
        workshop.paths.versions / "v0001" / "evaluation" / "candidate" / f"{one.slices[1].slice_id}.jsonl"
    )
    assert len(results.read_bytes().splitlines()) == 1 + 5

    matrix = version_matrix(VersionStore(workshop.paths))
    assert [part.slice_id for part in matrix.slices] == [first, second]
    assert [[cell is not None for cell in row.cells] for row in matrix.rows] == [[True, False], [True, True]]
    assert matrix.rows[0].backward_transfer is None
    assert matrix.rows[1].backward_transfer is not None
    before, untrained = (two.scores[role][second].share_right for role in ("current", "base"))
    assert before is not None and untrained is not None
    assert matrix.rows[1].forward_transfer == pytest.approx(before - untrained)
    assert matrix.rows[0].forward_transfer is None
    assert {cell.measure for row in matrix.rows for cell in row.cells if cell} <= {"answers", "verbatim"}

    store = VersionStore(workshop.paths)
    assert [part.slice_id for part in earlier_slices(workshop.paths, store.get("v0001"))] == [first]
    assert earlier_slices(workshop.paths, None) == []
    assert [part.slice_id for part in every_held_out_slice(workshop.paths)] == [first, second]


def test_a_file_that_ruins_what_a_text_taught_is_held(workshop: Any) -> None:
    poem, noise = CORPUS[0].split(), CORPUS[4].split()
    first = workshop.job(texts_of(poem, 60), "train.num_train_epochs=4", "promotion.policy=always")
    workshop.carry_out(first)
    VersionStore(workshop.paths).roll_forward()
    second = workshop.job(
        texts_of(noise, 60),
        *("train.num_train_epochs=12", "train.replay_ratio=0", "evaluation.max_test_share=1"),
    )
    workshop.carry_out(second)

    facts, two = VersionStore(workshop.paths).get("v0002").facts, report_of(workshop, "v0002")
    (test,) = [test for test in two.tests if test.slice_id == first]
    assert (test.measure, test.outcome) == ("loss", "worse")
    assert test.difference > test.margin
    assert two.verdict.decision == facts.decision == "hold"
    assert "significantly worse on colours.jsonl: loss" in facts.decision_reason

    matrix = version_matrix(VersionStore(workshop.paths))
    (learned,), (forgotten, own) = [[cell for cell in row.cells if cell is not None] for row in matrix.rows]
    assert learned.loss is not None and forgotten.loss is not None and own.loss is not None
    assert learned.loss < forgotten.loss
    assert [cell.accuracy for cell in (learned, forgotten, own)] == [None, None, None]
    assert matrix.rows[1].backward_transfer is None
    score = two.scores["candidate"][first]
    assert (score.verbatim, score.accuracy, score.f1, score.interval, score.answered) == (*[None] * 4, 0)
    for results in (workshop.paths.versions / "v0002" / "evaluation").rglob("*.jsonl"):
        assert all("answer" not in json.loads(line) for line in results.read_bytes().splitlines())


def test_pairs_are_tested_by_which_answer_is_likelier(
    workshop: Any, make_pairs: Records, make_chats: Records
) -> None:
    first = workshop.job(make_pairs(40), *STEPS, "promotion.policy=always")
    workshop.carry_out(first)
    VersionStore(workshop.paths).roll_forward()
    second = workshop.job(make_chats(40, seed=2), *STEPS)
    workshop.carry_out(second)

    two = report_of(workshop, "v0002")
    assert {test.measure for test in two.tests if test.slice_id == first} == {"preference"}
    score = two.scores["candidate"][first]
    results = workshop.paths.versions / "v0002" / "evaluation" / "candidate" / f"{first}.jsonl"
    likelier = [json.loads(line)["prefers_expected"] for line in results.read_bytes().splitlines()[1:]]
    assert len(likelier) == score.records > 0
    assert score.accuracy == pytest.approx(sum(likelier) / len(likelier))
    assert (score.verbatim, score.answered) == (None, 0)
    # The version before had measured it of itself.
    assert two.scores["current"][first] == report_of(workshop, "v0001").scores["candidate"][first]
    (cell, _) = version_matrix(VersionStore(workshop.paths)).rows[1].cells
    assert cell is not None and cell.accuracy == score.accuracy


def test_a_finished_part_of_a_test_is_not_measured_again(workshop: Any, make_chats: Records) -> None:
    job = workshop.job(make_chats(40), *STEPS)
    workshop.carry_out(job)
    test = workshop.folder(job).version_test
    kept = {path: path.stat().st_mtime_ns for path in test.rglob("*.json*")}
    assert {path.name for path in kept} == {"amounts.json", "fit.json", f"{job}.jsonl"}
    folder = workshop.paths.versions / "v0001"
    before = (folder / "evaluation" / "candidate" / f"{job}.jsonl").read_bytes()
    folder.rename(workshop.paths.base / "aside")
    outcome, _ = workshop.carry_out(job)
    assert outcome.version == "v0001"
    assert {path: path.stat().st_mtime_ns for path in test.rglob("*.json*")} == kept
    assert (folder / "evaluation" / "candidate" / f"{job}.jsonl").read_bytes() == before


@pytest.mark.config_key("evaluation.max_test_share")
def test_the_share_of_time_decides_whether_there_are_answers(workshop: Any, make_chats: Records) -> None:
    answered, planned = [], []
    for seed, share in enumerate((0.0, 1.0)):
        settings = (f"evaluation.max_test_share={share}", "train.num_train_epochs=8")
        job = workshop.job(make_chats(60, seed=seed), *settings, "evaluation.max_new_tokens=8")
        outcome, _ = workshop.carry_out(job)
        score = report_of(workshop, outcome.version).scores["candidate"][job]
        assert score.loss is not None and score.verbatim is not None
        answered.append(score.answered)
        planned.append(json.loads(workshop.folder(job).report.read_bytes())["plan"]["test_share"])
    assert answered[0] == 0 < answered[1]
    assert planned == [0.0, 1.0]


def test_a_suite_that_is_not_there_ends_the_run_before_it_trains(workshop: Any, make_chats: Records) -> None:
    outcome, events = workshop.carry_out(workshop.job(make_chats(24), "evaluation.suites=[nowhere.jsonl]"))
    assert (outcome.outcome, outcome.kind) == ("failed", "config")
    assert "evaluation.suites" in outcome.message and "nowhere.jsonl" in outcome.message
    assert not [event for event in events if event["event"] == "step"]


def test_held_out_records_that_are_lost_end_a_run_before_it_trains(
    workshop: Any, make_chats: Records
) -> None:
    first = workshop.job(make_chats(24), *STEPS, "promotion.policy=always")
    workshop.carry_out(first)
    VersionStore(workshop.paths).roll_forward()
    file = workshop.paths.held_out / f"{first}.jsonl"
    file.rename(workshop.paths.base / "aside")
    second = workshop.job(make_chats(24, seed=2), *STEPS)
    outcome, events = workshop.carry_out(second)
    assert (outcome.outcome, outcome.kind) == ("failed", "integrity")
    assert str(file) in outcome.message
    # Not even looked at: with the file gone, its texts would have passed as new ones.
    assert not workshop.folder(second).report.exists()
    assert not [event for event in events if event["event"] == "step"]
    (workshop.paths.base / "aside").rename(file)
    assert workshop.carry_out(second)[0].outcome == "completed"
