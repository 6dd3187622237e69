"""A model answers suites."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from config import Config, load_config
from errors import UsageError
from evaluation.items import ItemResult, Passage
from evaluation.suites import Suite, load_suite
from tests.conftest import ROOT, Workshop
from tests.waiting import wait_until
from training.suite_records import RecordKeeper, read_records
from training.suite_runs import Contestant, answer_limit, run_suite, spread

SMALL = ("model.precision=float32", "train.threads=1", "evaluation.per_device_eval_batch_size=2")


def config_of(shop: Workshop, *more: str) -> Config:
    return load_config(shop.paths.base, [f"model.base={shop.model}", *SMALL, *more])


def suite_of(folder: Path, items: int) -> Suite:
    """Make a suite whose expected answers have different lengths."""
    file = folder / "colours.jsonl"
    lines = [
        {
            "id": f"item-{number}",
            "level": "odd" if number % 2 else "even",
            "prompt": f"Which colour is number {number}?",
            "answer": "grey " * (1 + number % 3),
        }
        for number in range(items)
    ]
    file.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return load_suite(file)


def timeless(results: Sequence[ItemResult]) -> list[ItemResult]:
    return [result.model_copy(update={"seconds": None}) for result in results]


def test_each_item_is_answered_once_whatever_was_answered_before(workshop: Workshop, tmp_path: Path) -> None:
    suite, config = suite_of(tmp_path, 7), config_of(workshop)
    seen: list[tuple[int, int]] = []
    part = run_suite(workshop.paths, config, "base", suite, limit=3)
    whole = run_suite(
        workshop.paths, config, "base", suite, on_progress=lambda done, total: seen.append((done, total))
    )
    again = run_suite(workshop.paths, config, "base", suite)
    assert (part.answered, whole.answered, again.answered) == (3, 4, 0)
    assert (seen[0], seen[-1]) == ((3, 7), (7, 7))
    assert [result.item_id for result in whole.results] == [item.item_id for item in suite.items]
    assert again.results == whole.results
    assert [(score.level, score.items) for score in whole.scores] == [("even", 4), ("odd", 3), (None, 7)]
    assert all(result.loss is not None and result.answer is not None for result in whole.results)


def test_an_item_is_asked_again_where_time_did_not_suffice(workshop: Workshop, tmp_path: Path) -> None:
    suite, config = suite_of(tmp_path, 4), config_of(workshop)
    keeper = RecordKeeper(
        workshop.paths.evaluations, Contestant(workshop.paths, config, "base").header(suite)
    )
    late = ItemResult(item_id="", grader="exact", expected="x", answer="unfin", finish_reason="time")
    keeper.add([late.model_copy(update={"item_id": item.item_id}) for item in suite.items[:2]])
    assert run_suite(workshop.paths, config, "base", suite).answered == 4
    again = run_suite(workshop.paths, config, "base", suite)
    assert again.answered == 0
    assert all(result.correct is not None for result in again.results)


def test_passages_beside_a_suite_have_losses_and_count_in_no_score(
    workshop: Workshop, tmp_path: Path
) -> None:
    suite, config = suite_of(tmp_path, 3), config_of(workshop)
    passages = [Passage(f"text-{number}", text="the grey cat " * (number + 1)) for number in range(3)]
    seen: list[tuple[int, int]] = []
    found = run_suite(
        *(workshop.paths, config, "base", suite),
        passages=passages,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert (seen[0], seen[-1], found.answered) == ((0, 6), (6, 6), 6)
    read = found.results[3:]
    assert [result.item_id for result in read] == ["text-0", "text-1", "text-2"]
    assert all(result.loss is not None and result.answer is None for result in read)
    assert [(score.level, score.items) for score in found.scores] == [("even", 2), ("odd", 1), (None, 3)]
    again = run_suite(workshop.paths, config, "base", suite, passages=passages)
    assert (again.answered, again.results) == (0, found.results)


def test_answers_do_not_depend_on_the_batch_they_were_given_in(workshop: Workshop, tmp_path: Path) -> None:
    suite = suite_of(tmp_path, 4)
    by_two = run_suite(workshop.paths, config_of(workshop), "base", suite)
    by_two.file.unlink()
    one = config_of(workshop, "evaluation.per_device_eval_batch_size=1")
    by_one = run_suite(workshop.paths, one, "base", suite)
    assert [result.answer for result in by_one.results] == [result.answer for result in by_two.results]


@pytest.mark.config_key("evaluation.suite_max_new_tokens")
def test_no_answer_is_longer_than_the_cap_and_another_cap_is_another_run(
    workshop: Workshop, tmp_path: Path
) -> None:
    suite = suite_of(tmp_path, 2)
    short = run_suite(workshop.paths, config_of(workshop, "evaluation.suite_max_new_tokens=3"), "base", suite)
    long = run_suite(workshop.paths, config_of(workshop), "base", suite)
    assert max(result.answer_tokens or 0 for result in short.results) == 3
    assert max(result.answer_tokens or 0 for result in long.results) > 3
    assert short.file != long.file


def test_a_version_and_its_base_are_different_contestants(learned: Workshop, tmp_path: Path) -> None:
    suite, config = suite_of(tmp_path, 2), config_of(learned)
    version = run_suite(learned.paths, config, "current", suite)
    base = run_suite(learned.paths, config, Contestant(learned.paths, config, "base"), suite)
    assert version.model == "v0001"
    assert base.model.startswith("base-")
    assert [one.loss for one in version.results] != [one.loss for one in base.results]
    with pytest.raises(UsageError, match="no version 'v0007'"):
        run_suite(learned.paths, config, "v0007", suite)


def test_a_killed_bench_goes_on_where_it_was(workshop: Workshop, tmp_path: Path) -> None:
    short = "evaluation.suite_max_new_tokens=8"
    suite, config = suite_of(tmp_path, 300), config_of(workshop, short)
    settings = [f"--set={setting}" for setting in (f"model.base={workshop.model}", *SMALL, short)]
    command = [sys.executable, "-m", "cli", "bench", "--model=base", f"--base={workshop.paths.base}"]
    process = subprocess.Popen([*command, f"--suite={tmp_path / 'colours.jsonl'}", *settings], cwd=ROOT)
    try:
        folder = workshop.paths.evaluations
        wait_until(lambda: any(len(file.read_bytes().splitlines()) > 6 for file in folder.glob("*/*.jsonl")))
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    (file,) = folder.glob("*/*.jsonl")
    before = file.read_bytes()
    known = read_records(file).results
    assert 0 < len(known) < len(suite.items)
    finished = run_suite(workshop.paths, config, "base", suite)
    assert finished.file == file
    assert finished.answered == len(suite.items) - len(known)
    assert file.read_bytes().startswith(before)
    assert len(file.read_bytes().splitlines()) == 1 + len(suite.items)
    file.unlink()
    undisturbed = run_suite(workshop.paths, config, "base", suite, limit=12)
    by_name = {result.item_id: result for result in finished.results}
    assert timeless(undisturbed.results) == timeless([by_name[one.item_id] for one in undisturbed.results])


def test_a_limit_takes_items_from_the_whole_suite() -> None:
    items = load_suite("everyday_facts").items
    levels = [item.level for item in spread(items, 6)]
    assert levels == ["easy", "easy", "medium", "medium", "hard", "hard"]
    assert spread(items, None) == spread(items, 1000) == items


def test_the_limit_of_an_answer_is_twice_the_expected_one_and_never_above_the_cap() -> None:
    assert [answer_limit(tokens, 200) for tokens in (1, 8, 9, 92, 500)] == [32, 32, 64, 200, 200]
