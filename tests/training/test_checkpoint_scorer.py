"""The published score to six decimals, scored once, and the same best for whoever asks."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import checkpoint_scorer
from training.checkpoint_scorer import (
    CheckpointHistory,
    ScoredCheckpoint,
    ScoreWeights,
    calculate_checkpoint_score,
    choose_best,
    history_from_log,
    robust_rank,
    score_parts,
)

FIVE_EPOCHS = [(2.5, 2.8), (1.2, 1.1), (0.8, 0.75), (0.75, 0.3), (0.9, 0.1)]
LOSSES = st.floats(0.0, 1e3)
ANYTHING = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3), st.booleans())


def data(eval_loss: Any, train_loss: Any = None, without: Any = 1) -> dict[str, Any]:
    return {
        "eval_loss": eval_loss,
        "train_loss": train_loss,
        "epochs_without_improvement": without,
    }


def history(*losses: tuple[float | None, float | None], noise: float | None = None) -> CheckpointHistory:
    """Score evaluations at the steps 1, 2, 3 …"""
    past = CheckpointHistory()
    for step, (eval_loss, train_loss) in enumerate(losses, 1):
        past.add(step, eval_loss, train_loss, eval_standard_error=noise)
    return past


def best_losses(past: CheckpointHistory, selection: Any = "score") -> tuple[Any, Any]:
    best = past.best(selection)
    assert best is not None
    return best.eval_loss, best.train_loss


@pytest.mark.parametrize(
    ("eval_loss", "train_loss", "without", "published"),
    [
        (0.5, 0.45, 0, 0.188244),
        (0.4, 0.1, 1, 0.432459),
        (0.6, 0.55, 0, 0.234111),
        (0.6, 0.55, 1, 0.334111),
        (0.5, None, 0, 0.158244),
        (2.5, 2.8, 0, 1.246912),
        (1.2, 1.1, 0, 0.541601),
        (0.8, 0.75, 0, 0.329878),
        (0.75, 0.3, 0, 0.465585),
        (0.9, 0.1, 1, 0.728965),
    ],
)
def test_the_published_scores_come_out_to_six_decimals(
    eval_loss: float, train_loss: float | None, without: int, published: float
) -> None:
    assert round(calculate_checkpoint_score(data(eval_loss, train_loss, without)), 6) == published


def test_without_an_evaluation_loss_a_checkpoint_is_never_best() -> None:
    assert calculate_checkpoint_score(data(None, 0.3, 0)) == math.inf
    assert calculate_checkpoint_score({}) == math.inf


def test_a_checkpoint_that_says_nothing_of_improvement_gets_no_bonus() -> None:
    assert calculate_checkpoint_score({"eval_loss": 0.5}) == pytest.approx(0.258244, abs=1e-6)


def test_the_terms_of_a_score_are_those_of_the_published_example() -> None:
    parts = score_parts(data(0.5, 0.45, 0))
    assert parts.eval_loss == pytest.approx(0.25)
    assert parts.gap == pytest.approx(0.03)
    assert parts.perplexity == pytest.approx(0.008244, abs=1e-6)
    assert parts.improvement == -0.1
    assert parts.reason is None


def test_the_weight_of_the_gap_counts_once_and_not_twice() -> None:
    assert calculate_checkpoint_score(data(0.5, 0.45, 0)) != pytest.approx(0.167244, abs=1e-6)


def test_each_weight_changes_its_own_term_alone() -> None:
    names = ("eval_loss", "gap", "perplexity", "improvement")
    plain = score_parts(data(0.5, 0.45, 0))
    for name in names:
        doubled = score_parts(data(0.5, 0.45, 0), ScoreWeights(**{name: 2 * getattr(ScoreWeights(), name)}))
        for other in names:
            factor = 2 if other == name else 1
            assert getattr(doubled, other) == pytest.approx(factor * getattr(plain, other))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, "0.5", True, 10**400, [0.5]])
def test_a_loss_that_is_no_finite_number_scores_infinite_and_says_why(broken: Any) -> None:
    for name, parts in (
        ("eval_loss", score_parts(data(broken, 0.5))),
        ("train_loss", score_parts(data(0.5, broken))),
    ):
        assert parts.total == math.inf
        assert parts.reason is not None and name in parts.reason


def test_numbers_of_numpy_are_numbers() -> None:
    score = calculate_checkpoint_score(data(np.float32(0.5), np.float64(0.45), 0))
    assert score == pytest.approx(0.188244, abs=1e-6)


def test_a_loss_of_zero_is_a_loss() -> None:
    assert calculate_checkpoint_score(data(0.0, 0.0)) == pytest.approx(0.005)
    assert calculate_checkpoint_score(data(0.5, 0.0)) == pytest.approx(0.25 + 0.3 + 0.008244, abs=1e-6)


def test_a_loss_too_large_for_its_exponential_is_scored() -> None:
    assert calculate_checkpoint_score(data(709.79)) == pytest.approx(354.895 + 0.1)
    assert calculate_checkpoint_score(data(3.0)) == calculate_checkpoint_score(data(5.0)) - 1.0
    assert score_parts(data(2.9)).perplexity == pytest.approx(0.090871, abs=1e-6)


def test_terms_beyond_all_numbers_are_infinite_and_not_nan() -> None:
    assert calculate_checkpoint_score(data(1e308, -1e308)) == math.inf
    heavy = ScoreWeights(eval_loss=3.0, gap=0.0)
    assert calculate_checkpoint_score(data(1.7e308, 1.0), heavy) == math.inf


def test_a_negative_objective_is_compared_with_its_own_size() -> None:
    assert calculate_checkpoint_score(data(-0.1, -0.05)) == pytest.approx(0.104524, abs=1e-6)


@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_input_gives_a_number_that_sorts(eval_loss: Any, train_loss: Any, without: Any) -> None:
    parts = score_parts(data(eval_loss, train_loss, without))
    assert not math.isnan(parts.total)
    assert (parts.total == math.inf) == (parts.reason is not None)


@given(LOSSES, LOSSES, st.floats(0.0, 10.0), st.integers(0, 3))
def test_at_an_equal_relative_gap_a_higher_loss_never_scores_better(
    one: float, other: float, gap: float, without: int
) -> None:
    lower, higher = sorted((one, other))
    scores = [
        calculate_checkpoint_score(data(loss, loss + gap * max(loss, 0.001), without))
        for loss in (lower, higher)
    ]
    assert scores[0] <= scores[1] + 1e-9


@given(LOSSES, st.floats(0.0, 10.0), st.floats(0.0, 10.0))
def test_a_larger_gap_never_scores_better(loss: float, one: float, other: float) -> None:
    small, large = sorted((one, other))
    for sign in (-1, 1):
        near, far = (calculate_checkpoint_score(data(loss, loss + sign * gap)) for gap in (small, large))
        assert near <= far + 1e-9


# --- one history, scored once


def test_improvement_is_decided_before_the_score() -> None:
    past = history((1.0, None), (0.8, None), (0.9, None))
    assert best_losses(past) == (0.8, None)
    assert [one.epochs_without_improvement for one in past.scored] == [0, 0, 1]
    assert past.scored[2].score == pytest.approx(0.462298, abs=1e-6)


def test_the_best_keeps_its_own_score_and_is_not_scored_again() -> None:
    losses = (0.50, 0.49, 0.51, 0.505, 0.52, 0.515, 0.53)
    assert best_losses(history(*((loss, None) for loss in losses))) == (0.49, None)


def test_the_gap_of_the_best_is_not_forgiven() -> None:
    past = CheckpointHistory([scored(0.40, 0.10, without=1)])
    past.add(9, 0.41, 0.40)
    assert [round(one.score, 6) for one in past.scored] == [0.432459, 0.219851]
    assert best_losses(past) == (0.41, 0.40)
    assert best_losses(history((0.40, 0.10), (0.41, 0.40))) == (0.41, 0.40)


def test_the_five_epochs_rank_as_published() -> None:
    past = history(*FIVE_EPOCHS)
    ranking = sorted(past.scored, key=lambda one: one.score)
    assert [one.step for one in ranking] == [3, 4, 2, 5, 1]
    assert [round(one.score, 6) for one in past.scored] == [1.246912, 0.541601, 0.329878, 0.465585, 0.728965]


def test_a_step_is_scored_once_whatever_is_measured_later() -> None:
    past = history((0.5, 0.4))
    assert past.add(1, 0.1, 0.1) is past.scored[0]
    assert past.scored[0].eval_loss == 0.5


def test_equal_losses_at_different_steps_are_two_evaluations() -> None:
    past = history((0.5, None), (0.5, None))
    assert [one.epochs_without_improvement for one in past.scored] == [0, 1]
    assert best_losses(past) == (0.5, None)
    best = past.best()
    assert best is not None and best.step == 1


def test_an_evaluation_cannot_be_slipped_in_before_one_that_is_scored() -> None:
    past = CheckpointHistory()
    past.add(20, 0.5)
    with pytest.raises(ValueError, match="step 10 comes after step 20"):
        past.add(10, 0.6)


def test_a_failed_evaluation_is_no_improvement_and_is_not_compared_with() -> None:
    past = history((0.5, None), (math.nan, None), (0.6, None), (0.55, None))
    assert [one.epochs_without_improvement for one in past.scored] == [0, 1, 2, 0]
    assert [one.compared_with for one in past.scored] == [None, 0.5, 0.5, 0.6]
    assert past.scored[1].eval_loss is None
    assert history((None, None), (0.7, None)).scored[1].epochs_without_improvement == 0


def test_nothing_scored_means_nothing_is_best() -> None:
    assert CheckpointHistory().best() is None
    assert history((None, 0.3), (math.nan, 0.2)).best() is None


@given(st.lists(st.tuples(st.one_of(LOSSES, st.just(math.nan)), LOSSES), min_size=1, max_size=12), st.data())
def test_a_restarted_run_and_a_reader_of_the_files_name_the_same_best(
    losses: list[tuple[float, float]], draw: st.DataObject
) -> None:
    straight = history(*losses)
    cut = draw.draw(st.integers(1, len(losses)))
    stored = [json.dumps(one.to_json(), allow_nan=False) for one in straight.scored[:cut]]
    resumed = CheckpointHistory([ScoredCheckpoint.from_json(json.loads(stored[-1]))])
    for step, (eval_loss, train_loss) in enumerate(losses[cut:], cut + 1):
        resumed.add(step, eval_loss, train_loss)
    listed = {one.step: one for one in (ScoredCheckpoint.from_json(json.loads(text)) for text in stored)}
    listed.update({one.step: one for one in resumed.scored})
    assert list(listed.values()) == straight.scored
    for selection in ("score", "robust", "eval_loss"):
        assert choose_best(listed.values(), selection) == straight.best(selection)
        assert choose_best(reversed(straight.scored), selection) == straight.best(selection)


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=12))
def test_the_best_is_the_lowest_stored_score(losses: list[tuple[float, float]]) -> None:
    past = history(*losses)
    best = past.best()
    assert best is not None
    assert best.score == min(one.score for one in past.scored)


def test_a_stored_score_is_kept_although_the_weights_change() -> None:
    stored = history((0.5, 0.45)).scored[0].to_json()
    past = CheckpointHistory([ScoredCheckpoint.from_json(stored)], ScoreWeights(gap=9.0))
    assert past.add(1, 0.5, 0.45).score == pytest.approx(0.188244, abs=1e-6)
    assert past.add(2, 0.5, 0.45).weights.gap == 9.0


def test_what_is_stored_holds_the_inputs_the_parts_and_no_infinity() -> None:
    good = history((0.5, 0.45)).scored[0].to_json()
    assert good["score"] == pytest.approx(0.188244, abs=1e-6)
    assert good["parts"] == pytest.approx(
        {"eval_loss": 0.25, "gap": 0.03, "perplexity": 0.008244, "improvement": -0.1}, abs=1e-6
    )
    assert (good["eval_loss"], good["train_loss"], good["epochs_without_improvement"]) == (0.5, 0.45, 0)
    failed = history((math.inf, 0.45)).scored[0].to_json()
    assert failed["score"] is None and "inf" in failed["reason"]


# --- runs of before, and of elsewhere


def test_a_run_without_stored_scores_is_scored_from_its_log_by_the_same_rule() -> None:
    entries: list[dict[str, Any]] = []
    for epoch, (eval_loss, train_loss) in enumerate(FIVE_EPOCHS, 1):
        entries += [
            {"loss": train_loss + 0.01, "step": 10 * epoch - 5, "epoch": epoch - 0.5},
            {"loss": train_loss - 0.01, "step": 10 * epoch, "epoch": epoch},
            {"eval_loss": eval_loss, "step": 10 * epoch, "epoch": epoch},
        ]
    entries.append({"train_loss": 1.0, "step": 50, "epoch": 5})
    past = history_from_log(entries)
    best = past.best()
    assert best is not None and (best.step, best.epoch) == (30, 3)
    assert [round(one.score, 6) for one in past.scored] == [1.246912, 0.541601, 0.329878, 0.465585, 0.728965]


def test_a_list_that_drops_gap_and_trajectory_would_name_another_best() -> None:
    neutral = [calculate_checkpoint_score(data(eval_loss, None, 0)) for eval_loss, _ in FIVE_EPOCHS]
    assert [round(score, 4) for score in neutral] == [1.2109, 0.5166, 0.3111, 0.2856, 0.3623]
    assert neutral.index(min(neutral)) + 1 == 4


def test_a_log_without_a_training_loss_since_the_last_evaluation_carries_the_one_before() -> None:
    entries = [{"loss": 0.0, "step": 1}, {"eval_loss": 0.5, "step": 2}, {"eval_loss": 0.4, "step": 4}]
    assert [one.train_loss for one in history_from_log(entries).scored] == [0.0, 0.0]
    assert history_from_log(entries[1:]).scored[0].train_loss is None


def test_one_noisy_batch_does_not_decide_the_training_loss() -> None:
    entries = [{"loss": loss, "step": step} for step, loss in enumerate([0.5] * 9 + [2.5], 1)]
    scored_one = history_from_log([*entries, {"eval_loss": 0.6, "step": 10}]).scored[0]
    assert scored_one.train_loss == pytest.approx(0.7)


def test_the_file_runs_alone_where_nothing_else_is_installed(tmp_path: Path) -> None:
    shutil.copy(checkpoint_scorer.__file__, tmp_path / "checkpoint_scorer.py")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import checkpoint_scorer as scorer; "
        "print(round(scorer.calculate_checkpoint_score("
        "{'eval_loss': 0.5, 'train_loss': 0.45, 'epochs_without_improvement': 0}), 6))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("0.188244", "")


# --- the robust selection


def scored(
    eval_loss: float, train_loss: float | None, *, without: int = 1, step: int = 1, noise: float | None = None
) -> ScoredCheckpoint:
    return ScoredCheckpoint(
        step=step,
        eval_loss=eval_loss,
        train_loss=train_loss,
        epochs_without_improvement=without,
        parts=score_parts(data(eval_loss, train_loss, without)),
        eval_standard_error=noise,
    )


def pick(*candidates: ScoredCheckpoint, selection: Any = "robust") -> tuple[float | None, float | None]:
    best = choose_best(candidates, selection)
    assert best is not None
    return best.eval_loss, best.train_loss


def test_robust_selection_keeps_every_published_ranking() -> None:
    assert pick(scored(0.5, 0.45, without=0), scored(0.4, 0.1, step=2)) == (0.5, 0.45)
    improving = choose_best(
        [scored(0.6, 0.55, step=1), scored(0.6, 0.55, step=2, without=0)], selection="robust"
    )
    assert improving is not None and improving.step == 2
    ranks = {one.step: robust_rank(one) for one in history(*FIVE_EPOCHS).scored}
    assert sorted(ranks, key=ranks.__getitem__) == [3, 4, 2, 5, 1]


def test_robust_selection_gives_no_bonus_of_a_tenth_for_any_gain() -> None:
    four_times_worse, best = scored(0.20, 0.20, without=0), scored(0.05, 0.05, step=2)
    assert (round(four_times_worse.score, 6), round(best.score, 6)) == (0.006107, 0.030256)
    assert pick(four_times_worse, best, selection="score") == (0.20, 0.20)
    assert pick(four_times_worse, best) == (0.05, 0.05)


def test_robust_selection_does_not_punish_a_training_loss_above_the_evaluation_loss() -> None:
    under, over = scored(1.0, 1.3), scored(1.0, 0.7, step=2)
    assert round(under.score, 6) == round(over.score, 6) == 0.603591
    assert robust_rank(under) < robust_rank(over)
    assert [under.signed_gap, over.signed_gap] == pytest.approx([-0.3, 0.3])


@pytest.mark.parametrize("noise", [None, 0.002, 0.01])
def test_robust_selection_is_not_misled_by_a_tiny_gap_at_a_tiny_loss(noise: float | None) -> None:
    worse, better = scored(0.05, 0.05, noise=noise), scored(0.02, 0.012, step=2, noise=noise)
    assert (round(worse.score, 6), round(better.score, 6)) == (0.030256, 0.135101)
    assert pick(worse, better, selection="score") == (0.05, 0.05)
    assert pick(worse, better) == (0.02, 0.012)


def test_robust_selection_takes_what_lies_within_a_standard_error_for_equal() -> None:
    lowest, improving = scored(0.500, 0.5, step=2, noise=0.02), scored(0.515, 0.515, without=0, noise=0.02)
    assert pick(lowest, improving) == (0.515, 0.515)
    certain = [scored(0.500, 0.5, step=2, noise=0.001), scored(0.515, 0.515, without=0, noise=0.001)]
    assert pick(*certain) == (0.500, 0.5)


def test_ties_go_to_the_lower_loss_and_then_to_the_earlier_step() -> None:
    assert pick(scored(0.5, 0.5, step=7), scored(0.5, 0.5, step=3), selection="eval_loss") == (0.5, 0.5)
    for selection in ("score", "eval_loss", "robust"):
        best = choose_best([scored(0.5, 0.5, step=7), scored(0.5, 0.5, step=3)], selection)
        assert best is not None and best.step == 3
    weightless = ScoreWeights(0.0, 0.0, 0.0, 0.0)
    past = CheckpointHistory(weights=weightless)
    past.add(1, 0.6)
    past.add(2, 0.5)
    assert best_losses(past) == (0.5, None)


@given(st.lists(st.tuples(LOSSES, LOSSES), min_size=1, max_size=8), st.floats(0.0, 1.0))
def test_robust_selection_never_takes_what_is_worse_by_more_than_the_noise_and_the_gap(
    losses: list[tuple[float, float]], noise: float
) -> None:
    past = history(*losses, noise=noise)
    best = past.best("robust")
    assert best is not None
    lowest = min(robust_rank(one) for one in past.scored)
    assert robust_rank(best) <= lowest + 0.5 * noise + 1e-12
