"""The trained weights of a model: copied, put back, loaded from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a copy of the trained weights, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def set_adapter_weights(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Put back what `adapter_weights` returned."""
    with torch.no_grad():
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight)


def load_adapter(model: Any, folder: Path) -> None:
    """Replace the trained weights by those of a checkpoint or version."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def leave_widening_to_autocast(model: Any) -> None:
    """Keep PEFT from copying every adapter's input to float32, which autocast undoes at once.

    The values are the same without the two copies; a step is 5 % faster.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False


def nonsense_in(model: Any) -> str | None:
    """Return the name of a trained weight that is not finite, or None when all are."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not bool(torch.isfinite(weight).all()):
            return str(name)
    return None
