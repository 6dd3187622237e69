"""One optimizer step as the unit: exact, weighted by token, and never a number that is not one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from chat_template import ChatTemplate
from config import load_config
from errors import ConfigError, JobFailed
from training.adapter import adapter_weights
from training.batches import Row
from training.dataset import TokenRows, tokenise_run
from training.model import load_learner
from training.trainer import PlannedTrainer, build_trainer

Records = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def rows_of(tmp_path: Path, tiny_model: Path) -> Callable[[list[dict[str, Any]]], TokenRows]:
    def tokenise(records: list[dict[str, Any]]) -> TokenRows:
        source = tmp_path / "records.jsonl"
        lines = [orjson.dumps({"line": line, **record}) for line, record in enumerate(records, 1)]
        source.write_bytes(b"\n".join(lines) + b"\n")
        template = ChatTemplate.load(tiny_model)
        config = load_config(tmp_path).data
        files = {"train": source}
        return tokenise_run(tmp_path / "tokens", files, template, "key", config, lambda done: None)["train"]

    return tokenise


@pytest.fixture
def trainer_of(tmp_path: Path, tiny_model: Path) -> Callable[..., PlannedTrainer]:
    def build(rows: TokenRows, *overrides: str, held_out: TokenRows | None = None) -> PlannedTrainer:
        config = load_config(tmp_path, ["model.precision=float32", *overrides])
        learner = load_learner(tiny_model, config, None)
        trainer = build_trainer(learner, tmp_path / "run", config, rows.facts.kind, [])
        trainer.setup(config, rows, held_out, pad_token_id=3)
        return trainer

    return build


def gradient(trainer: PlannedTrainer, rows: list[Row]) -> tuple[float, dict[str, torch.Tensor]]:
    """Do the backward pass of one step; return its loss and gradients."""
    trainer.model.zero_grad()
    loss = float(trainer.training_step(trainer.model, rows))
    return loss, {
        name: weight.grad.clone() for name, weight in trainer.model.named_parameters() if weight.requires_grad
    }


def assert_same(
    one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]
) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    for name, values in one[1].items():
        torch.testing.assert_close(values, other[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["chats", "pairs"])
def test_a_step_is_the_same_however_it_is_cut_and_laid_out(
    kind: str, rows_of: Any, trainer_of: Any, make_chats: Records, make_pairs: Records
) -> None:
    rows = rows_of((make_chats if kind == "chats" else make_pairs)(12))
    trainer = trainer_of(rows)
    step = [rows.dataset[number] for number in range(12)]
    whole = gradient(trainer, step)
    for size in (1, 5, 6):
        trainer.micro_batch = size
        assert_same(gradient(trainer, step), whole)
    assert_same(gradient(trainer_of(rows, "train.batching=packed"), step), whole)


def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(6))
    trainer = trainer_of(rows)
    step = [rows.dataset[number] for number in range(6)]
    each = [gradient(trainer, [row]) for row in step]
    tokens = [int((row["labels"][0][1:] != -100).sum()) for row in step]
    total = sum(loss * count for (loss, _), count in zip(each, tokens, strict=True))
    assert len(set(tokens)) > 1
    assert gradient(trainer, step)[0] == pytest.approx(total / sum(tokens), rel=1e-5)


@pytest.mark.config_key("evaluation.per_device_eval_batch_size")
def test_the_evaluated_loss_does_not_depend_on_the_batch_size(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(9))
    found, batches = [], []
    for size in (1, 4, 9):
        trainer = trainer_of(rows, f"evaluation.per_device_eval_batch_size={size}")
        seen: list[int] = []
        trainer.on_eval_batch = lambda seen=seen: seen.append(1)
        found.append(trainer.record_losses(rows))
        batches.append(len(seen))
    assert batches == [9, 3, 1]
    for losses in found[1:]:
        assert losses.weights == found[0].weights
        assert losses.per_record == pytest.approx(found[0].per_record, rel=1e-5)
        assert losses.mean == pytest.approx(found[0].mean, rel=1e-5)


def test_the_mean_counts_every_token_once(rows_of: Any, trainer_of: Any, make_chats: Records) -> None:
    rows = rows_of(make_chats(5))
    losses = trainer_of(rows).record_losses(rows)
    assert losses.mean == pytest.approx(sum(losses.sums) / sum(losses.weights))
    assert losses.mean != pytest.approx(sum(losses.per_record) / 5, rel=1e-6)


def test_a_micro_batch_too_large_for_memory_is_halved_and_the_step_done_again(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(8))
    step = [rows.dataset[number] for number in range(8)]
    whole = gradient(trainer_of(rows), step)
    trainer = trainer_of(rows)
    sizes = fill_memory_above(trainer, 2)
    assert_same(gradient(trainer, step), whole)
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert trainer.micro_batch == 2


def test_a_record_too_large_for_memory_fails_the_job_with_the_remedy(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(2))
    trainer = trainer_of(rows)
    fill_memory_above(trainer, 0)
    with pytest.raises(JobFailed, match="does not hold one record of") as failure:
        trainer.training_step(trainer.model, [rows.dataset[0], rows.dataset[1]])
    assert failure.value.kind == "oom"


def fill_memory_above(trainer: PlannedTrainer, size: int) -> list[int]:
    """Let the model run out of memory on more than `size` records; return the sizes it was tried with."""
    tried: list[int] = []

    def check(_: Any, arguments: Any, settings: Any) -> None:
        tried.append(len(settings["input_ids"]))
        if tried[-1] > size:
            raise torch.OutOfMemoryError("CUDA out of memory, as it would say")

    trainer.model.register_forward_pre_hook(check, with_kwargs=True)
    return tried


@pytest.mark.parametrize("survived", [0, 3])
def test_moments_that_memory_does_not_hold_are_made_again_and_nothing_of_the_step_is_lost(
    survived: int, rows_of: Any, trainer_of: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(make_chats(8))
    undisturbed = trainer_of(rows)
    undisturbed.train()
    trainer = trainer_of(rows)
    plain = torch.zeros_like
    calls: list[int] = []

    def zeros_like(*arguments: Any, **settings: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == survived + 1:
            raise torch.OutOfMemoryError("CUDA out of memory, as it would say")
        return plain(*arguments, **settings)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    short: list[tuple[str, int]] = []
    trainer.on_short_memory = lambda purpose, size: short.append((purpose, size))
    trainer.train()
    assert len(calls) > survived
    assert short == [("training", 4)]
    assert trainer.state.global_step == undisturbed.state.global_step == 1
    after = adapter_weights(trainer.model)
    for name, weight in adapter_weights(undisturbed.model).items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=0)


def test_moments_that_memory_never_holds_fail_the_job(
    rows_of: Any, trainer_of: Any, make_chats: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory, as it would say")

    trainer = trainer_of(rows_of(make_chats(8)))
    before = adapter_weights(trainer.model)
    monkeypatch.setattr(torch, "zeros_like", refuse)
    with pytest.raises(JobFailed, match="does not hold the moments") as failure:
        trainer.train()
    assert failure.value.kind == "oom"
    for name, weight in adapter_weights(trainer.model).items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


def test_a_later_step_of_the_optimizer_is_never_done_twice(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    trainer = trainer_of(rows_of(make_chats(8)))
    short: list[int] = []
    trainer.on_short_memory = lambda purpose, size: short.append(size)
    trainer.train()

    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory, as it would say")

    optimizer = trainer.optimizer.optimizer
    optimizer.register_step_pre_hook(refuse)
    with pytest.raises(torch.OutOfMemoryError):
        optimizer.step()
    assert short == [4]


def test_an_evaluation_too_large_for_memory_goes_on_with_halves_and_the_same_losses(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(11))
    whole = trainer_of(rows).record_losses(rows)
    trainer = trainer_of(rows)
    short: list[tuple[str, int]] = []
    trainer.on_short_memory = lambda purpose, size: short.append((purpose, size))
    sizes = fill_memory_above(trainer, 3)
    assert trainer.record_losses(rows).per_record == pytest.approx(whole.per_record, rel=1e-5)
    assert short == [("evaluation", 4), ("evaluation", 2)]
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 1]
    assert trainer.eval_batch == 2
    assert trainer.micro_batch == 8


def test_one_record_too_large_to_be_scored_is_an_error(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(3))
    trainer = trainer_of(rows)
    fill_memory_above(trainer, 0)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.record_losses(rows)


@pytest.mark.parametrize("poison", ["weights", "gradients"])
def test_numbers_that_are_not_finite_end_the_run_before_a_weight_or_a_file_changes(
    poison: str, rows_of: Any, trainer_of: Any, make_chats: Records, tmp_path: Path
) -> None:
    rows = rows_of(make_chats(16))
    trainer = trainer_of(rows)
    weight = next(weight for weight in trainer.model.parameters() if weight.requires_grad)
    if poison == "gradients":
        weight.register_hook(lambda values: values * math.inf)
    else:
        with torch.no_grad():
            weight[0] = math.nan
    before = adapter_weights(trainer.model)
    with pytest.raises(JobFailed) as failure:
        trainer.train()
    assert failure.value.kind == "nan"
    assert "step 1" in str(failure.value)
    after = adapter_weights(trainer.model)
    for name, values in after.items():
        torch.testing.assert_close(values, before[name], rtol=0, atol=0, equal_nan=True)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_weights_that_are_not_finite_are_never_saved(
    rows_of: Any, trainer_of: Any, make_chats: Records, tmp_path: Path
) -> None:
    trainer = trainer_of(rows_of(make_chats(4)))
    trainer.train()
    weight = next(w for w in trainer.model.parameters() if w.requires_grad)
    with torch.no_grad():
        weight[0] = math.inf
    with pytest.raises(JobFailed, match="not finite"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.config_key("model.gradient_checkpointing")
def test_recomputing_activations_changes_memory_and_not_the_gradient(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(4))
    step = [rows.dataset[number] for number in range(4)]
    calls = {}
    gradients = {}
    for setting in ("false", "true"):
        trainer = trainer_of(rows, f"model.gradient_checkpointing={setting}")
        seen: list[int] = []
        trainer.train()
        layer = trainer.model.get_base_model().model.layers[0].mlp.gate_proj
        trainer.model.load_state_dict(trainer_of(rows).model.state_dict())
        handle = layer.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        gradients[setting] = gradient(trainer, step)
        handle.remove()
        calls[setting] = len(seen)
    assert calls == {"false": 1, "true": 2}
    assert_same(gradients["true"], gradients["false"])


def test_bfloat16_gives_the_same_loss_to_two_digits(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    rows = rows_of(make_chats(8))
    exact = trainer_of(rows).record_losses(rows).mean
    rough = trainer_of(rows, "model.precision=bfloat16")
    rough.train()
    assert rough.last_step is not None and math.isfinite(rough.last_step.loss)
    before = trainer_of(rows, "model.precision=bfloat16").record_losses(rows).mean
    assert before == pytest.approx(exact, abs=0.1)


def test_an_optimizer_nobody_knows_is_a_config_error(
    rows_of: Any, trainer_of: Any, make_chats: Records
) -> None:
    with pytest.raises(ConfigError, match="magic"):
        trainer_of(rows_of(make_chats(2)), "train.optim=magic")
