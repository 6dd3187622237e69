"""Which modules of an adapter learn: gradients, weights and updates, the two factors of a module together.

Gradients are to be observed before they are clipped. At a sampled step everything is computed where the
weights are and fetched at once, so that a GPU waits one time.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean

import torch
from pydantic import BaseModel, ConfigDict

FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.|$)")

ACTIVE_NORM = 1e-8
VANISHING_NORM = 1e-5
EXPLODING_NORM = 100.0
IMBALANCE = 1000.0
TOP_LAYERS = 5
DIGITS = 6
"""What is told of a number: a norm in float32 has no more that are certain."""


class LayerStats(BaseModel):
    """One adapted module, over its last 100 samples; None is what was not a finite number or not seen yet."""

    model_config = ConfigDict(frozen=True)

    mean_grad_norm: float | None
    max_grad_norm: float | None
    current_grad_norm: float | None
    """Of both factors together, before clipping."""
    mean_update: float | None
    max_update: float | None
    current_update: float | None
    """Length of the way that both factors went in the last sampled step."""
    num_updates: int
    update_ratio: float | None
    """The update as a share of the weights' norm."""
    norm_a: float | None
    norm_b: float | None
    effective_rank: float | None
    """How many directions B·A uses: the exponential of the entropy of its singular values
    (Roy and Vetterli 2007); 0 while B·A is zero."""

    def told(self) -> dict[str, float | int | None]:
        """Return the fields with as many digits as are certain; of hundreds of modules, many times a run."""
        fields: dict[str, float | int | None] = self.model_dump()
        return {
            name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
            for name, value in fields.items()
        }


class TopLayer(BaseModel):
    """A module and its gradient norm."""

    model_config = ConfigDict(frozen=True)

    name: str
    grad_norm: float


class LoRASummary(BaseModel):
    """All modules at the last sample."""

    model_config = ConfigDict(frozen=True)

    total_layers: int
    active_layers: int
    dead_layers: tuple[str, ...]
    """Without any gradient in the last samples, the first ones not counted."""
    vanishing_layers: tuple[str, ...]
    exploding_layers: tuple[str, ...]
    broken_layers: tuple[str, ...]
    """Whose gradient is not finite."""
    smallest_grad_norm: float | None
    """Of those above zero."""
    largest_grad_norm: float | None
    gradient_imbalance: float | None
    """The largest over the smallest; above 1000 the modules learn at very different speeds."""
    top_layers: tuple[TopLayer, ...]


@dataclass(slots=True)
class _Layer:
    """What is remembered of one module; norms that are not finite are kept as None."""

    window: int
    current: dict[str, float | None] = field(default_factory=dict)
    gradients: deque[float] = field(init=False)
    updates: deque[float] = field(init=False)
    zero_samples: int = 0
    effective_rank: float | None = None

    def __post_init__(self) -> None:
        self.gradients, self.updates = deque(maxlen=self.window), deque(maxlen=self.window)

    @property
    def gradient(self) -> float | None:
        return self.current.get("gradient")

    def take(self, gradient: float, update: float, norm_a: float, norm_b: float) -> None:
        weights = math.hypot(norm_a, norm_b)
        ratio = update / weights if weights > 0 else math.nan
        numbers = {"gradient": gradient, "update": update, "norm_a": norm_a, "norm_b": norm_b, "ratio": ratio}
        self.current = {name: _finite(number) for name, number in numbers.items()}
        if math.isfinite(gradient):
            self.gradients.append(gradient)
        if math.isfinite(update):
            self.updates.append(update)

    def stats(self) -> LayerStats:
        return LayerStats(
            mean_grad_norm=_mean(self.gradients),
            max_grad_norm=max(self.gradients, default=None),
            current_grad_norm=self.gradient,
            mean_update=_mean(self.updates),
            max_update=max(self.updates, default=None),
            current_update=self.current.get("update"),
            num_updates=len(self.updates),
            update_ratio=self.current.get("ratio"),
            norm_a=self.current.get("norm_a"),
            norm_b=self.current.get("norm_b"),
            effective_rank=self.effective_rank,
        )


class LoRAMonitor:
    """Follows the adapter of one run.

    `before_step` is called when all gradients of a step are there and nothing has clipped them, `after_step`
    when the optimizer has used them. Only every `interval`-th step is sampled; on a sampled one the trained
    weights are copied, which takes as much memory as the adapter until the step is over.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, torch.Tensor]],
        *,
        interval: int = 10,
        rank_samples: int = 20,
        warm_up_samples: int = 2,
        dead_samples: int = 5,
        window: int = 100,
    ) -> None:
        """Take the trained LoRA factors among the named `parameters`.

        The effective rank is computed at every `rank_samples`-th sample. A module is dead when its gradient
        was zero in `dead_samples` samples in a row, the first `warm_up_samples` of the run left out.
        """
        self._interval = interval
        self._rank_samples = rank_samples
        self._warm_up_samples = warm_up_samples
        self._dead_samples = dead_samples
        self._factors = _factors(parameters)
        self._weights = [weight for pair in self._factors.values() for weight in pair]
        self._layers = {name: _Layer(window) for name in self._factors}
        self._samples = 0
        self._broken: tuple[str, ...] = ()
        self._pending: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Observe the gradients of optimizer step `step` if it is one to sample; waits for nothing."""
        is_due = step % self._interval == 0 or self._samples == 0
        if is_due and self._weights:
            gradients = [
                torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self._weights
            ]
            self._pending = _norms(gradients), [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def after_step(self) -> bool:
        """Observe the weights after a sampled step; return whether it was one."""
        if self._pending is None:
            return False
        gradients, before = self._pending
        self._pending = None
        updates = _norms(torch._foreach_sub(self._weights, before))
        table = torch.stack([gradients, updates, _norms(self._weights)]).tolist()
        self._samples += 1
        self._take(*table)
        if self._samples % self._rank_samples == 1 % self._rank_samples:
            self._measure_ranks()
        return True

    @property
    def lora_stats(self) -> dict[str, LayerStats]:
        """Every module by name; `model_dump` of a value is a plain dict."""
        return {name: layer.stats() for name, layer in self._layers.items()}

    @property
    def lora_summary(self) -> LoRASummary | None:
        """All modules at the last sample, or None before it."""
        if not self._samples:
            return None
        norms = {name: layer.gradient for name, layer in self._layers.items() if layer.gradient is not None}
        positive = [norm for norm in norms.values() if norm > 0]
        ranking = sorted(norms.items(), key=lambda item: -item[1])
        return LoRASummary(
            total_layers=len(self._layers),
            active_layers=sum(norm > ACTIVE_NORM for norm in norms.values()),
            dead_layers=tuple(
                name for name, layer in self._layers.items() if layer.zero_samples >= self._dead_samples
            ),
            vanishing_layers=tuple(name for name, norm in norms.items() if 0 < norm < VANISHING_NORM),
            exploding_layers=tuple(name for name, norm in norms.items() if norm > EXPLODING_NORM),
            broken_layers=self._broken,
            smallest_grad_norm=min(positive, default=None),
            largest_grad_norm=max(positive, default=None),
            gradient_imbalance=max(positive) / min(positive) if positive else None,
            top_layers=tuple(TopLayer(name=name, grad_norm=norm) for name, norm in ranking[:TOP_LAYERS]),
        )

    def _take(self, gradients: list[float], updates: list[float], weights: list[float]) -> None:
        """Take the norms of all factors, the A and the B of each module side by side."""
        broken = []
        for number, (name, layer) in enumerate(self._layers.items()):
            a, b = 2 * number, 2 * number + 1
            gradient = _length(gradients[a], gradients[b])
            layer.take(gradient, _length(updates[a], updates[b]), weights[a], weights[b])
            if not math.isfinite(gradient):
                broken.append(name)
            is_zero = gradient <= ACTIVE_NORM and self._samples > self._warm_up_samples
            layer.zero_samples = layer.zero_samples + 1 if is_zero else 0
        self._broken = tuple(broken)

    @torch.no_grad()
    def _measure_ranks(self) -> None:
        """Compute the effective rank of every module; all of one rank in one batch and one transfer."""
        by_rank: dict[int, list[str]] = defaultdict(list)
        for name, (a, _) in self._factors.items():
            by_rank[a.shape[0]].append(name)
        for names in by_rank.values():
            factors = [self._factors[name] for name in names]
            for name, rank in zip(names, effective_ranks(factors).tolist(), strict=True):
                self._layers[name].effective_rank = _finite(rank)


def effective_ranks(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the effective rank of B·A for factors A ``(r, in)`` and B ``(out, r)`` of one r, shape ``(N,)``.

    B·A itself is never built: with A·Aᵀ = S·Sᵀ its squared singular values are the eigenvalues of the r by
    r matrix Sᵀ·(Bᵀ·B)·S.
    """
    device = factors[0][0].device
    doubles = [(a.to(device, torch.float64), b.to(device, torch.float64)) for a, b in factors]
    gram_a = torch.stack([a @ a.T for a, _ in doubles])
    gram_b = torch.stack([b.T @ b for _, b in doubles])
    is_finite = (gram_a.isfinite() & gram_b.isfinite()).all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.nan_to_num(gram_a, 0.0, 0.0, 0.0))
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]
    inner = root.mT @ torch.nan_to_num(gram_b, 0.0, 0.0, 0.0) @ root
    singular = torch.linalg.eigvalsh(inner).clamp_min(0).sqrt()
    total = singular.sum(-1, keepdim=True)
    entropy = torch.special.entr(singular / total.clamp_min(torch.finfo(total.dtype).tiny)).sum(-1)
    ranks = torch.where(total[:, 0] > 0, entropy.exp(), 0.0)
    return torch.where(is_finite, ranks, math.nan)


def _factors(
    parameters: Iterable[tuple[str, torch.Tensor]],
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return the trained factors (A, B) of every module; what has only one of them is left out."""
    found: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, parameter in parameters:
        match = FACTOR.match(name)
        if match is not None and parameter.requires_grad:
            found[match[1]][match[2]] = parameter
    return {name: (pair["A"], pair["B"]) for name, pair in found.items() if len(pair) == 2}


def _norms(tensors: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the length of each tensor, shape ``(N,)``, on the device of the first."""
    norms = torch._foreach_norm(tensors, 2, dtype=torch.float32)
    return torch.stack([norm.to(norms[0].device) for norm in norms])


def _length(a: float, b: float) -> float:
    return math.hypot(a, b) if math.isfinite(a) and math.isfinite(b) else math.nan


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _mean(numbers: deque[float]) -> float | None:
    return fmean(numbers) if numbers else None
