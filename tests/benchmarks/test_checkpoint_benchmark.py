"""The checkpoint benchmark saves in both ways and pauses a real daemon."""

from __future__ import annotations

from pathlib import Path

from benchmarks.checkpoint import measure_pause, measure_saving


def test_both_ways_of_saving_take_turns(tiny_model: Path, tmp_path: Path) -> None:
    saving = measure_saving(tiny_model, 3, tmp_path)
    assert len(saving.ours) == len(saving.trainers) == 3
    assert saving.ratio > 0
    assert (tmp_path / "checkpoint-7" / "manifest.json").is_file()
    assert (tmp_path / "trainers-own" / "checkpoint-8" / "tokenizer.json").is_file()


def test_a_pause_of_a_real_daemon_is_timed(tiny_model: Path) -> None:
    pause = measure_pause(tiny_model, "inbox.settle_seconds=0.1", "train.num_train_epochs=1000")
    assert pause.seconds > 0
    assert pause.longest_step > 0
