"""The course of the learning rate, and moments that outlive a run."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from config import TrainConfig
from errors import ConfigError
from training.optimization import (
    OPTIMIZER,
    carry_moments,
    learning_rate_factor,
    parameter_names,
    write_parameter_names,
)


def course(total: int, **settings: object) -> list[float]:
    config = TrainConfig.model_validate(settings)
    return [learning_rate_factor(step, total, config) for step in range(total)]


@pytest.mark.config_key("train.warmup_ratio")
def test_the_warm_up_rises_to_the_peak_and_never_starts_at_zero() -> None:
    factors = course(100, warmup_ratio=0.1)
    assert factors[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert max(factors) == 1.0
    assert course(1, warmup_ratio=0.03) == [1.0]
    assert all(factor > 0 for factor in course(7, warmup_ratio=1.0))
    assert course(50, warmup_ratio=0.0)[0] == 1.0


@pytest.mark.config_key("train.lr_scheduler_type", "train.min_lr_ratio")
@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_the_rate_falls_to_its_floor_without_a_jump(kind: str) -> None:
    factors = course(200, lr_scheduler_type=kind, min_lr_ratio=0.2, warmup_ratio=0.05)
    assert factors[-1] == pytest.approx(0.2)
    after_warmup = factors[10:]
    assert after_warmup == sorted(after_warmup, reverse=True)
    assert max(abs(after - before) for before, after in pairwise(after_warmup)) < 0.01
    assert course(200, lr_scheduler_type=kind, min_lr_ratio=0.5)[-1] == pytest.approx(0.5)


def test_a_constant_rate_is_constant_after_the_warm_up() -> None:
    assert set(course(40, lr_scheduler_type="constant", warmup_ratio=0.0)) == {1.0}


def test_every_file_of_the_same_size_gets_the_same_peak() -> None:
    assert [max(course(30)) for _ in range(6)] == [1.0] * 6


def trained(names: tuple[str, ...]) -> tuple[nn.ParameterDict, torch.optim.Optimizer]:
    torch.manual_seed(len(names))
    model = nn.ParameterDict({name: nn.Parameter(torch.randn(3)) for name in names})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        sum(weight.pow(2).sum() for weight in model.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def store(folder: Path, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    model, optimizer = trained(names)
    torch.save(optimizer.state_dict(), folder / OPTIMIZER)
    write_parameter_names(folder, parameter_names(model, optimizer))
    return {name: optimizer.state[model[name]]["exp_avg"].clone() for name in names}


def test_moments_are_carried_by_name_and_the_learning_rate_is_not(tmp_path: Path) -> None:
    stored = store(tmp_path, ("a", "b"))
    fresh = nn.ParameterDict({name: nn.Parameter(torch.zeros(3)) for name in ("b", "a")})
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=0.7)
    carry_moments(optimizer, parameter_names(fresh, optimizer), tmp_path)
    for name in ("a", "b"):
        assert optimizer.state[fresh[name]]["exp_avg"].equal(stored[name])
        assert optimizer.state[fresh[name]]["step"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.7


def test_moments_of_another_adapter_are_refused_with_the_remedy(tmp_path: Path) -> None:
    store(tmp_path, ("a", "b"))
    other = nn.ParameterDict({"c": nn.Parameter(torch.zeros(3))})
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(ConfigError, match="set it to 'reset'"):
        carry_moments(optimizer, parameter_names(other, optimizer), tmp_path)
