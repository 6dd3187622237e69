"""Commands that measure."""

from __future__ import annotations

import importlib.util
import json

import pytest
from typer.testing import CliRunner

from cli import app
from config import load_config
from errors import UsageError
from evaluation.syllo.verification import verify
from evaluation.syllo.words import is_for_evaluation
from intake.formats import detect_format, normalise
from tests.conftest import Workshop
from training.ledger.database import Database, list_suite_results
from training.ledger.upkeep import ledger_differences
from training.suite_runs import Contestant

RUNNER = CliRunner()


def bench(shop: Workshop, *arguments: str) -> str:
    settings = (f"model.base={shop.model}", "model.precision=float32", "train.threads=1")
    sets = [f"--set={setting}" for setting in (*settings, "evaluation.suite_max_new_tokens=4")]
    result = RUNNER.invoke(
        app, ["bench", f"--base={shop.paths.base}", *sets, *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.stdout


def test_a_bench_shows_levels_with_intervals_and_leaves_its_rows_in_the_ledger(workshop: Workshop) -> None:
    shown = bench(workshop, "--model=base", "--suite=everyday_facts", "--limit=6")
    assert "6 of its items" in shown
    assert "95 % interval" in shown
    document = json.loads(bench(workshop, "--model=base", "--suite=everyday_facts", "--limit=6", "--json"))
    (run,) = document["runs"]
    assert [(score["level"], score["items"]) for score in run["scores"]] == [
        ("easy", 2),
        ("medium", 2),
        ("hard", 2),
        (None, 6),
    ]
    assert (
        run["scores"][-1]["interval"][0] <= run["scores"][-1]["accuracy"] <= run["scores"][-1]["interval"][1]
    )
    config = load_config(workshop.paths.base, [f"model.base={workshop.model}"])
    assert run["model"] == Contestant(workshop.paths, config, "base").name
    with Database(workshop.paths, config.ledger).transaction() as connection:
        rows = list_suite_results(connection)
    assert {(row["model"], row["suite"], row["suite_items"]) for row in rows} == {
        (run["model"], "everyday_facts", 48)
    }
    assert ledger_differences(workshop.paths, config) == []


def test_a_bench_asks_the_suites_of_everyday_skills_by_default(workshop: Workshop) -> None:
    document = json.loads(bench(workshop, "--model=base", "--limit=1", "--json"))
    assert [run["suite"] for run in document["runs"]] == ["everyday_facts", "everyday_formats"]


def test_a_wrong_suite_is_named_before_a_model_is_loaded(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nothing", "lm-eval:hellaswag"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=name):
            bench(workshop, "--suite=everyday_facts", f"--suite={name}")
    assert not workshop.paths.evaluations.exists()


def test_puzzles_to_train_on_are_records_that_the_intake_takes() -> None:
    made = [RUNNER.invoke(app, ["syllo", "--count=3", "--level=medium", "--seed=7"]).stdout for _ in range(2)]
    assert made[0] == made[1]
    lines = [json.loads(line) for line in made[0].splitlines()]
    assert len(lines) == 3
    for line in lines:
        record = normalise(line, detect_format(line).format, 1)
        assert (record.kind, record.grader) == ("chat", {"name": "syllo"})
        assert verify(line["metadata"], line["messages"][-1]["content"]).exact
        assert not any(is_for_evaluation(word["label"]) for word in line["metadata"]["words"])
