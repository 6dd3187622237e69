"""Which token comes next: the likeliest, or one drawn by chance that a seed repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from serving.tickets import Sampling

COLDEST = 1e-4


@dataclass
class Sampler:
    """Draws the tokens of one answer; its chance does not depend on what else is answered."""

    sampling: Sampling
    _chance: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        if self.sampling.seed is None:
            self._chance.seed()
        else:
            self._chance.manual_seed(self.sampling.seed)

    @property
    def is_greedy(self) -> bool:
        return self.sampling.temperature == 0.0

    def draw(self) -> float:
        """Return the next number of this answer's chance, from 0 to below 1."""
        return float(torch.rand((), generator=self._chance, dtype=torch.float64))


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Return the next token of each row, shape ``(B,)``, from logits of shape ``(B, V)``."""
    scores = logits.float()
    tokens = scores.argmax(dim=-1)
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.is_greedy]
    if drawn:
        rows = torch.tensor(drawn, device=scores.device)
        tokens[rows] = _draw(scores[rows], [samplers[row] for row in drawn])
    return tokens


def _draw(scores: torch.Tensor, samplers: Sequence[Sampler]) -> torch.Tensor:
    """Draw from the likeliest tokens of each row by inverting their cumulated probabilities."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=scores.device).unsqueeze(1)

    # Colder than this is greedy in all but name, and would divide by what is no number.
    temperatures = column([max(sampler.sampling.temperature, COLDEST) for sampler in samplers])
    distances = scores - scores.amax(dim=-1, keepdim=True)
    probabilities, order = torch.softmax(distances / temperatures, dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    top_p = column([sampler.sampling.top_p for sampler in samplers])
    kept = torch.where(before < top_p, probabilities, 0.0)
    kept[:, 0] = probabilities[:, 0]  # a top_p of 0 leaves the likeliest
    cumulated = kept.cumsum(dim=-1)
    wanted = column([sampler.draw() for sampler in samplers]) * cumulated[:, -1:]
    last = ((kept > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    places = torch.minimum(torch.searchsorted(cumulated, wanted, right=True), last)
    return order.gather(1, places).squeeze(1)
