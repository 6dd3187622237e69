"""The selection benchmark measures what it says, on runs of a few steps."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.selection import (
    ANSWER,
    QUESTION,
    SYMBOLS,
    Result,
    Setting,
    Task,
    mean_regret,
    settings,
    train,
)
from training.checkpoint_scorer import CheckpointHistory

SETTING = Setting(records=32, learning_rate=1e-2, noise=0.0, seed=1)


def test_there_are_enough_runs_and_each_is_another() -> None:
    assert len(set(settings())) == len(settings()) >= 20


def test_without_noise_equal_questions_have_equal_answers() -> None:
    records = Task(SETTING).records(4000)
    assert records.shape == (4000, QUESTION + ANSWER)
    seen: dict[tuple[int, ...], tuple[int, ...]] = {}
    for question, answer in zip(records[:, :2].tolist(), records[:, QUESTION].tolist(), strict=True):
        assert seen.setdefault(tuple(question), (answer,)) == (answer,)
    assert len(seen) == SYMBOLS**2


def test_noise_changes_the_share_of_answers_it_says() -> None:
    clean = Task(SETTING)
    noisy = Task(Setting(32, 1e-2, 0.5, seed=1))
    differ = (clean.records(2000) != noisy.records(2000))[:, QUESTION:].float().mean().item()
    assert differ == pytest.approx(0.5 * (1 - 1 / SYMBOLS), abs=0.03)


def test_a_run_is_scored_at_its_evaluations_and_is_the_same_again() -> None:
    torch.set_num_threads(1)
    first, second = (train(SETTING, steps=9, evaluations=3) for _ in range(2))
    assert [one.step for one in first.history.scored] == [3, 6, 9] == list(first.test_losses)
    assert first.history.scored == second.history.scored
    assert all(math.isfinite(one.score) for one in first.history.scored)
    assert all(first.regret(rule) >= 0 for rule in ("score", "robust", "eval_loss"))


def test_regret_is_what_a_pick_costs_on_the_third_set() -> None:
    history = CheckpointHistory()
    history.add(1, 0.8, 0.75)
    history.add(2, 0.75, 0.3)
    result = Result(SETTING, history, {1: 1.0, 2: 0.9})
    assert result.regret("score") == pytest.approx(0.1)
    assert result.regret("eval_loss") == 0.0
    assert mean_regret([result, result], "score") == 0.1
