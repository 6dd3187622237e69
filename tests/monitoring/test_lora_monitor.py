"""Gradients and updates of an adapter, module by module, with closed forms and on the tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from monitoring.lora_monitor import LayerStats, LoRAMonitor, LoRASummary, effective_ranks

MODULES = ("first", "second")


def adapter(*modules: str, rank: int = 2) -> dict[str, nn.Parameter]:
    """Make the factors of some modules under the names that PEFT gives them; A is ones, B is twos."""
    named = {}
    for module in modules:
        prefix = f"base_model.model.model.layers.0.{module}.lora"
        named[f"{prefix}_A.default.weight"] = nn.Parameter(torch.ones(rank, 3))
        named[f"{prefix}_B.default.weight"] = nn.Parameter(torch.full((4, rank), 2.0))
    return named


def step(monitor: LoRAMonitor, named: dict[str, nn.Parameter], number: int, *gradients: float) -> LoRASummary:
    """Give each factor a constant gradient and take a step of plain descent with a rate of 0.1."""
    optimizer = torch.optim.SGD(named.values(), lr=0.1)
    for parameter, gradient in zip(named.values(), gradients, strict=True):
        parameter.grad = torch.full_like(parameter, gradient)
    monitor.before_step(number)
    optimizer.step()
    monitor.after_step()
    summary = monitor.lora_summary
    assert summary is not None
    return summary


def test_six_digits_of_a_number_are_told_however_small_it_is() -> None:
    unknown: dict[str, Any] = dict.fromkeys(LayerStats.model_fields)
    known = {"num_updates": 1234567, "norm_a": 2.393256664276123, "update_ratio": 3.827014683e-12}
    told = {"num_updates": 1234567, "norm_a": 2.39326, "update_ratio": 3.82701e-12}
    assert LayerStats(**unknown | known).told() == unknown | told


def test_norms_update_and_ratio_have_their_closed_forms() -> None:
    named = adapter("first")
    monitor = LoRAMonitor(named.items(), interval=1)
    step(monitor, named, 1, 3.0, 4.0)
    stats = monitor.lora_stats["model.layers.0.first"]
    gradient = math.sqrt(6 * 9 + 8 * 16)
    assert stats.current_grad_norm == pytest.approx(gradient)
    assert stats.current_update == pytest.approx(0.1 * gradient)
    assert stats.norm_a == pytest.approx(math.sqrt(6) * 0.7)
    assert stats.norm_b == pytest.approx(math.sqrt(8) * 1.6)
    assert stats.update_ratio == pytest.approx(0.1 * gradient / math.hypot(0.7 * 6**0.5, 1.6 * 8**0.5))


def test_mean_and_maximum_are_over_the_window() -> None:
    named = adapter("first")
    monitor = LoRAMonitor(named.items(), interval=1, window=3)
    for number, gradient in enumerate((100.0, 1.0, 2.0, 3.0), 1):
        step(monitor, named, number, gradient, 0.0)
    stats = monitor.lora_stats["model.layers.0.first"]
    assert stats.mean_grad_norm == pytest.approx(2.0 * math.sqrt(6))
    assert stats.max_grad_norm == pytest.approx(3.0 * math.sqrt(6))
    assert stats.num_updates == 3


def test_the_two_factors_of_a_module_are_one_layer() -> None:
    named = adapter(*MODULES)
    monitor = LoRAMonitor(named.items(), interval=1)
    summary = step(monitor, named, 1, 0.0, 1.0, 0.0, 1.0)
    assert (summary.total_layers, summary.active_layers, summary.dead_layers) == (2, 2, ())


def test_a_layer_is_dead_after_several_samples_without_a_gradient_and_not_before() -> None:
    named = adapter(*MODULES)
    monitor = LoRAMonitor(named.items(), interval=1, warm_up_samples=2, dead_samples=3)
    dead = [step(monitor, named, number, 1.0, 1.0, 0.0, 0.0).dead_layers for number in range(1, 7)]
    assert dead == [(), (), (), (), ("model.layers.0.second",), ("model.layers.0.second",)]
    assert step(monitor, named, 7, 1.0, 1.0, 0.0, 1e-3).dead_layers == ()


def test_a_frozen_factor_is_not_a_layer() -> None:
    named = adapter(*MODULES)
    for parameter in list(named.values())[:2]:
        parameter.requires_grad_(False)
    trained = dict(list(named.items())[2:])
    monitor = LoRAMonitor(named.items(), interval=1)
    assert step(monitor, trained, 1, 1.0, 1.0).total_layers == 1
    assert list(monitor.lora_stats) == ["model.layers.0.second"]


def test_other_weights_than_those_of_the_adapter_are_no_layers() -> None:
    monitor = LoRAMonitor([("model.embed.weight", nn.Parameter(torch.ones(2, 2)))], interval=1)
    monitor.before_step(1)
    assert monitor.after_step() is False
    assert (monitor.lora_stats, monitor.lora_summary) == ({}, None)


def test_gradients_that_are_all_zero_break_nothing() -> None:
    named = adapter(*MODULES)
    summary = step(LoRAMonitor(named.items(), interval=1), named, 1, 0.0, 0.0, 0.0, 0.0)
    assert (summary.smallest_grad_norm, summary.largest_grad_norm) == (None, None)
    assert (summary.gradient_imbalance, summary.active_layers) == (None, 0)


def test_a_weight_without_a_gradient_counts_as_zero() -> None:
    named = adapter("first")
    monitor = LoRAMonitor(named.items(), interval=1)
    monitor.before_step(1)
    monitor.after_step()
    assert monitor.lora_stats["model.layers.0.first"].current_grad_norm == 0.0


def test_vanishing_exploding_and_unequal_gradients_are_named() -> None:
    named = adapter("first", "second", "third")
    summary = step(LoRAMonitor(named.items(), interval=1), named, 1, 60.0, 0.0, 1e-7, 0.0, 0.1, 0.1)
    assert summary.exploding_layers == ("model.layers.0.first",)
    assert summary.vanishing_layers == ("model.layers.0.second",)
    assert summary.gradient_imbalance == pytest.approx(6e8)
    assert [layer.name[-5:] for layer in summary.top_layers] == ["first", "third", "econd"]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_never_shown(broken: float) -> None:
    named = adapter(*MODULES)
    monitor = LoRAMonitor(named.items(), interval=1, rank_samples=1)
    step(monitor, named, 1, 1.0, 1.0, 1.0, 1.0)
    summary = step(monitor, named, 2, 1.0, 1.0, broken, 1.0)
    assert summary.broken_layers == ("model.layers.0.second",)
    stats = monitor.lora_stats["model.layers.0.second"]
    assert (stats.current_grad_norm, stats.current_update, stats.norm_a) == (None, None, None)
    assert stats.effective_rank is None
    assert stats.mean_grad_norm == pytest.approx(math.sqrt(14))
    assert monitor.lora_stats["model.layers.0.first"].effective_rank == pytest.approx(1.0)


def test_only_every_nth_step_is_sampled_and_the_first() -> None:
    named = adapter("first")
    monitor = LoRAMonitor(named.items(), interval=10)
    sampled = []
    for number in range(3, 31):
        monitor.before_step(number)
        if monitor.after_step():
            sampled.append(number)
    assert sampled == [3, 10, 20, 30]


def test_the_effective_rank_of_orthogonal_directions_is_their_number() -> None:
    torch.manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(40, 8))
    for used in (1, 3, 8):
        a = torch.eye(8, 30)
        b = rotation.clone()
        b[:, used:] = 0
        assert effective_ranks([(a, b)]).tolist() == pytest.approx([used], abs=1e-6)
    assert effective_ranks([(torch.ones(8, 30), torch.zeros(40, 8))]).tolist() == [0.0]


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_the_effective_rank_is_that_of_the_product(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, 7, generator=generator), torch.randn(9, rank, generator=generator)
    values = torch.linalg.svdvals(b.double() @ a.double())
    share = values[values > 1e-9] / values.sum()
    expected = math.exp(-(share * share.log()).sum().item())
    assert effective_ranks([(a, b)]).item() == pytest.approx(expected, rel=1e-3)


def test_modules_of_different_rank_have_their_own() -> None:
    small, large = adapter("first", rank=2), adapter("second", rank=5)
    monitor = LoRAMonitor([*small.items(), *large.items()], interval=1)
    monitor.before_step(1)
    monitor.after_step()
    assert [stats.effective_rank for stats in monitor.lora_stats.values()] == pytest.approx([1.0, 1.0])


# PEFT reads an attribute that transformers has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_module_of_a_real_adapter_learns(tiny_model: Path) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    monitor = LoRAMonitor(model.named_parameters(), interval=1, rank_samples=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(4, 300, (2, 12))
    summaries = []
    for number in range(1, 9):
        model(input_ids=ids, labels=ids).loss.backward()
        monitor.before_step(number)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
        assert monitor.after_step()
        summary = monitor.lora_summary
        assert summary is not None
        summaries.append(summary)
    # At the start every A has no gradient, since every B is zero; the module has one.
    for summary in summaries:
        assert (summary.total_layers, summary.active_layers, summary.dead_layers) == (14, 14, ())
    assert summaries[-1].largest_grad_norm is not None and summaries[-1].largest_grad_norm > 1e-2
    ranks = [stats.effective_rank or 0.0 for stats in monitor.lora_stats.values()]
    assert all(1.0 <= rank <= 4.0 for rank in ranks)
