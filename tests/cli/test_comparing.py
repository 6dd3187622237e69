"""The command that puts two models side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from typer.testing import CliRunner

from cli import app
from tests.conftest import Workshop
from training.versions import VersionStore

RUNNER = CliRunner()
Records = Callable[..., list[dict[str, Any]]]


def compare(shop: Workshop, *arguments: str) -> str:
    settings = (
        *(f"model.base={shop.model}", "model.precision=float32", "train.threads=1"),
        *("evaluation.suite_max_new_tokens=4", "evaluation.suites=[]"),
    )
    sets = [f"--set={setting}" for setting in settings]
    result = RUNNER.invoke(
        app, ["compare", f"--base={shop.paths.base}", *sets, *arguments], catch_exceptions=False
    )
    assert result.exit_code == 0
    return result.stdout


def test_two_versions_are_compared_on_what_was_held_out_and_every_disagreement_is_shown(
    workshop: Workshop, make_chats: Records
) -> None:
    store = VersionStore(workshop.paths)
    for seed, epochs in ((1, 1), (2, 12)):
        job = workshop.job(
            make_chats(40, seed=seed), f"train.num_train_epochs={epochs}", "promotion.policy=always"
        )
        workshop.carry_out(job)
        store.roll_forward()

    found = json.loads(compare(workshop, "v0001", "v0002", "--json"))
    assert (found["a"], found["b"]) == ("v0001", "v0002")
    assert len(found["parts"]) == 2  # a held-out slice of each file
    for part in found["parts"]:
        assert part["a"]["answered"] == part["b"]["answered"] == part["records"] > 0
        assert part["loss_interval"][0] <= part["loss_difference"] <= part["loss_interval"][1]
        assert part["accuracy_difference"] * part["records"] == part["gained"] - part["lost"]
    differing = sum(part["gained"] + part["lost"] for part in found["parts"])
    assert len(found["disagreements"]) == differing

    results = {path: path.stat().st_mtime_ns for path in workshop.paths.evaluations.glob("*/*.jsonl")}
    shown = compare(workshop, "v0001", "v0002", "--show")
    assert "v0001 and v0002: " in shown and "95% confidence" in shown
    assert shown.count(" is right; expected ") == differing
    assert differing or "Both got the same items right." in shown
    assert {path: path.stat().st_mtime_ns for path in workshop.paths.evaluations.glob("*/*.jsonl")} == results


def test_a_model_is_no_better_than_itself(workshop: Workshop) -> None:
    suite = workshop.paths.base / "mine.jsonl"
    suite.write_text("".join(json.dumps({"prompt": f"which {n}", "answer": "red"}) + "\n" for n in range(6)))
    found = json.loads(compare(workshop, "base", "base", f"--suite={suite}", "--json"))
    (part,) = found["parts"]
    assert (part["loss_difference"], part["gained"], part["lost"]) == (0.0, 0, 0)
    assert found["winner"] == part["winner"] == "no difference"
    assert found["disagreements"] == []


def test_held_out_texts_are_compared_by_their_losses_alone(workshop: Workshop) -> None:
    lines = [json.dumps({"line": n, "text": "the rain " * n}) + "\n" for n in range(1, 7)]
    (workshop.paths.held_out / "000001-3f9c2a10.jsonl").write_text("".join(lines))
    (part,) = json.loads(compare(workshop, "base", "base", "--json"))["parts"]
    assert (part["records"], part["loss_difference"]) == (6, 0.0)
    assert part["a"]["loss"] > 0
    assert (part["a"]["accuracy"], part["a"]["f1"], part["a"]["tokens_per_second"]) == (None, None, None)
    assert (part["accuracy_difference"], part["gained"], part["mcnemar_p"]) == (None, None, None)
    assert "No item was judged right or wrong." in compare(workshop, "base", "base", "--show")


def test_versions_that_prefer_otherwise_are_told_apart_by_it_and_each_pair_is_shown(
    workshop: Workshop, make_pairs: Records
) -> None:
    """Learning preferences makes chosen answers less likely; that is shown, and names no winner."""
    unusual = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in make_pairs(30)]
    job = workshop.job(unusual, "train.num_train_epochs=3", "promotion.policy=always")
    workshop.carry_out(job)
    VersionStore(workshop.paths).roll_forward()

    found = json.loads(compare(workshop, "base", "v0001", "--json"))
    (part,) = found["parts"]
    assert part["records"] > 0 and part["loss_difference"] is not None
    assert part["loss_decides"] is False
    assert part["gained"] + part["lost"] == len(found["disagreements"]) > 0
    shown = compare(workshop, "base", "v0001", "--show")
    assert shown.count("v0001 prefers the chosen answer") == part["gained"]
    assert "Both got the same items right." not in shown
