"""The course of the learning rate, and optimizer moments that outlive a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer

from config import TrainConfig
from errors import ConfigError

PARAMETER_NAMES = "parameter_names.json"
OPTIMIZER = "optimizer.pt"


def learning_rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Return the share of the peak learning rate at `step`, counted from 0.

    The warm-up rises to the peak and never starts at 0, so that every step of a small file learns; the
    last step has ``min_lr_ratio`` unless the schedule is constant.
    """
    warmup = math.ceil(config.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    floor = config.min_lr_ratio
    match config.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            return 1 - (1 - floor) * progress
        case "cosine":
            return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def parameter_names(model: Any, optimizer: Any) -> list[str]:
    """Return the names of the optimizer's parameters in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def write_parameter_names(folder: Path, names: Sequence[str]) -> None:
    """Store beside the moments whose they are; the optimizer itself only numbers them."""
    (folder / PARAMETER_NAMES).write_text(json.dumps({"names": list(names)}), encoding="utf-8")


def carry_moments(optimizer: Optimizer, names: Sequence[str], folder: Path) -> None:
    """Start `optimizer` with the moments stored in `folder`; its learning rate stays its own."""
    stored = json.loads((folder / PARAMETER_NAMES).read_text())
    state = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)["state"]
    by_name = {name: state[index] for index, name in enumerate(stored["names"]) if index in state}
    current = optimizer.state_dict()
    try:
        current["state"] = {index: by_name[name] for index, name in enumerate(names)}
    except KeyError as error:
        raise ConfigError(
            f"train.optimizer_state: found no moments of {error} in {folder}, expected those of every "
            "adapter weight; set it to 'reset'"
        ) from error
    optimizer.load_state_dict(current)


def survive_short_memory(optimizer: Optimizer, on_short: Callable[[], None]) -> None:
    """Have `optimizer` begin its first step again where memory did not hold the moments made in it.

    The weights and the empty state are put back, then `on_short` makes room or gives up by raising. A later
    step, which may have changed some weights already, cannot be begun again: its error is passed on after
    `on_short`.
    """
    plain = optimizer.step

    def step(self: Optimizer, closure: Any = None) -> Any:
        is_first = not self.state
        parameters = [weight for group in self.param_groups for weight in group["params"]]
        before = [weight.detach().to("cpu", copy=True) for weight in parameters] if is_first else []
        while True:
            try:
                return plain(closure)
            except torch.OutOfMemoryError:
                if not is_first:
                    on_short()
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
            self.state.clear()
            with torch.no_grad():
                for weight, saved in zip(parameters, before, strict=True):
                    weight.copy_(saved)
            on_short()

    # A bound method, since a learning-rate schedule wraps it once more as one.
    optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
