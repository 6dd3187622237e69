"""The checkpoints of a run: sealed, listed by number, rotated."""

from __future__ import annotations

from pathlib import Path

from training import checkpoints
from training.checkpoints import CheckpointFacts


def save(run: Path, step: int, eval_loss: float | None = None, *, is_candidate: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
    facts = CheckpointFacts(
        *(), step=step, epoch=0.5, tokens=step * 10, precision="float32", micro_batch=8,
        eval_loss=eval_loss, is_candidate=is_candidate,
    )  # fmt: skip
    checkpoints.seal(folder, facts)
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


def test_the_best_is_the_candidate_with_the_lowest_loss_and_of_equals_the_later(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.4), (3, 0.4), (4, 0.6)):
        save(tmp_path, step, loss)
    save(tmp_path, 5, 0.1, is_candidate=False)
    best = checkpoints.best(checkpoints.list_checkpoints(tmp_path))
    assert best is not None and best.facts.step == 3


def test_a_loss_of_zero_is_a_loss(tmp_path: Path) -> None:
    save(tmp_path, 1, 0.0)
    save(tmp_path, 2, 0.5)
    best = checkpoints.best(checkpoints.list_checkpoints(tmp_path))
    assert best is not None and best.facts.step == 1


def test_without_losses_the_last_candidate_is_the_best(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    save(tmp_path, 3, is_candidate=False)
    best = checkpoints.best(checkpoints.list_checkpoints(tmp_path))
    assert best is not None and best.facts.step == 2
    assert checkpoints.best([]) is None


def test_rotation_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.8), (4, 0.7), (5, 0.6)):
        save(tmp_path, step, loss)
        checkpoints.rotate(tmp_path, 2)
        assert step in steps(tmp_path)
    assert steps(tmp_path) == [2, 5]
    save(tmp_path, 6, 0.5)
    checkpoints.rotate(tmp_path, 3)
    assert steps(tmp_path) == [2, 5, 6]
