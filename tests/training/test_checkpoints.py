"""The checkpoints of a run: sealed, listed by number, rotated."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest

from training import checkpoints
from training.checkpoint_scorer import CheckpointHistory, Selection, calculate_checkpoint_score
from training.checkpoints import CheckpointFacts


def save(
    run: Path,
    step: int,
    eval_loss: float | None = None,
    *,
    train_loss: float | None = None,
    is_candidate: bool = True,
) -> Path:
    """Save and score a checkpoint as a run does."""
    known = checkpoints.list_checkpoints(run)
    history = CheckpointHistory(checkpoint.scored for checkpoint in known if checkpoint.scored)
    scored = None if eval_loss is None else history.add(step, eval_loss, train_loss)
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
    facts = CheckpointFacts(
        *(), step=step, epoch=0.5, tokens=step * 10, precision="float32", micro_batch=8,
        eval_loss=eval_loss, train_loss=train_loss, is_candidate=is_candidate,
    )  # fmt: skip
    checkpoints.seal(folder, facts, scored)
    return folder


def steps(run: Path) -> list[int]:
    return [checkpoint.facts.step for checkpoint in checkpoints.list_checkpoints(run)]


def test_the_newest_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for step in (900, 1000, 80):
        save(tmp_path, step)
    assert steps(tmp_path) == [80, 900, 1000]
    newest = checkpoints.newest(checkpoints.list_checkpoints(tmp_path))
    assert newest is not None and newest.facts.step == 1000


def test_torn_checkpoints_are_neither_listed_nor_kept(tmp_path: Path) -> None:
    save(tmp_path, 5)
    (save(tmp_path, 10) / "adapter_model.safetensors").write_bytes(b"weights 1!")
    (tmp_path / "checkpoint-15").mkdir()
    (tmp_path / ".checkpoint-1.partial").mkdir()
    (tmp_path / "data").mkdir()
    assert steps(tmp_path) == [5]
    assert checkpoints.remove_torn(tmp_path) == [".checkpoint-1.partial", "checkpoint-10", "checkpoint-15"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-5", "data"]


def best_step(run: Path, selection: Selection = "score") -> int | None:
    chosen = checkpoints.best(checkpoints.list_checkpoints(run), selection)
    return None if chosen is None else chosen.facts.step


def test_the_best_is_the_candidate_with_the_lowest_stored_score(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.4), (3, 0.4), (4, 0.6)):
        save(tmp_path, step, loss)
    save(tmp_path, 5, 0.1, is_candidate=False)
    assert best_step(tmp_path) == 2


def test_a_loss_of_zero_is_a_loss(tmp_path: Path) -> None:
    save(tmp_path, 1, 0.0)
    save(tmp_path, 2, 0.5)
    assert best_step(tmp_path) == 1


@pytest.mark.config_key("scoring.selection")
def test_the_selection_decides_between_a_low_loss_and_a_small_gap(tmp_path: Path) -> None:
    save(tmp_path, 1, 0.5, train_loss=0.5)
    save(tmp_path, 2, 0.49, train_loss=0.05)
    assert best_step(tmp_path, "score") == 1
    assert best_step(tmp_path, "eval_loss") == 2
    assert [entry.is_best for entry in checkpoints.describe(tmp_path, "eval_loss")] == [True, False]


def test_a_score_is_kept_whatever_comes_after_it(tmp_path: Path) -> None:
    for step, loss in ((1, 1.0), (2, 0.8), (3, 0.9)):
        save(tmp_path, step, loss, train_loss=loss)
    first, second, third = (one.scored for one in checkpoints.list_checkpoints(tmp_path))
    assert first is not None and second is not None and third is not None
    assert second.score == pytest.approx(0.5 * 0.8 + 0.1 * math.exp(0.8) / 20 - 0.1)
    assert (second.epochs_without_improvement, third.epochs_without_improvement) == (0, 1)
    assert best_step(tmp_path) == 2


def test_the_list_shows_the_newest_first_with_parts_and_sizes(tmp_path: Path) -> None:
    save(tmp_path, 10, 0.5, train_loss=0.4)
    save(tmp_path, 20, 0.7, train_loss=0.3)
    save(tmp_path, 25, is_candidate=False)
    latest, second, first = checkpoints.describe(tmp_path, "score")
    assert [latest.step, second.step, first.step] == [25, 20, 10]
    assert (latest.is_latest, latest.is_best, latest.score, latest.parts) == (True, False, None, None)
    assert first.is_best and not second.is_best
    assert first.parts is not None
    assert first.score == pytest.approx(sum(part for part in first.parts.values() if part is not None))
    on_disk = sum(file.stat().st_size for file in (tmp_path / "checkpoint-10").iterdir())
    manifest = (tmp_path / "checkpoint-10" / "manifest.json").stat().st_size
    assert first.size_bytes == on_disk - manifest


def test_checkpoints_without_a_stored_score_are_scored_from_the_log_of_the_run(tmp_path: Path) -> None:
    log = [
        {"step": 1, "loss": 0.9},
        {"step": 2, "loss": 0.7},
        {"step": 2, "eval_loss": 0.6},
        {"step": 4, "loss": 0.3},
        {"step": 4, "eval_loss": 0.5},
    ]
    for step, loss in ((2, 0.6), (4, 0.5)):
        folder = save(tmp_path, step, loss)
        facts = checkpoints.list_checkpoints(tmp_path)[-1].facts
        (folder / "score.json").unlink()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        checkpoints.seal(folder, facts)
    first, second = checkpoints.list_checkpoints(tmp_path)
    assert first.scored is not None and second.scored is not None
    assert first.scored.score == calculate_checkpoint_score(
        {"eval_loss": 0.6, "train_loss": 0.8, "epochs_without_improvement": 0}
    )
    assert second.scored.train_loss == 0.3


def test_a_run_without_a_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints.describe(tmp_path / "nowhere", "score") == []


def test_the_list_can_be_read_while_a_run_removes_what_is_on_it(tmp_path: Path) -> None:
    def train() -> None:
        for step in range(2, 120):
            save(tmp_path, step, 1 / step)
            checkpoints.rotate(tmp_path, 2, "score")

    save(tmp_path, 1, 1.0)
    run = threading.Thread(target=train)
    run.start()
    looks = 0
    while run.is_alive():
        assert checkpoints.describe(tmp_path, "score")
        looks += 1
    run.join()
    assert looks > 1
    assert steps(tmp_path) == [118, 119]


def test_without_losses_the_last_candidate_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path, 3, is_candidate=False)
    assert best_step(tmp_path) == 2
    assert checkpoints.best([], "score") is None


def test_rotation_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.8), (4, 0.7), (5, 0.6)):
        save(tmp_path, step, loss)
        checkpoints.rotate(tmp_path, 2, "score")
        assert step in steps(tmp_path)
    assert steps(tmp_path) == [2, 5]
    save(tmp_path, 6, 0.5)
    checkpoints.rotate(tmp_path, 3, "score")
    assert steps(tmp_path) == [2, 5, 6]
