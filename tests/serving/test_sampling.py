"""Tokens that are drawn follow the model's probabilities, and nothing is drawn that was cut off."""

from __future__ import annotations

import pytest
import torch

from serving.sampling import Sampler, choose_tokens
from serving.tickets import Sampling

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn(sampling: Sampling, count: int) -> torch.Tensor:
    """Return how often each token was drawn."""
    sampler = Sampler(sampling)
    tokens = [int(choose_tokens(LOGITS.unsqueeze(0), [sampler])) for _ in range(count)]
    return torch.bincount(torch.tensor(tokens), minlength=4) / count


def test_tokens_come_as_often_as_they_are_likely() -> None:
    assert torch.allclose(drawn(Sampling(temperature=1, seed=0), 2000), LOGITS.exp(), atol=0.04)


def test_what_top_p_cuts_off_never_comes() -> None:
    often = drawn(Sampling(temperature=1, top_p=0.7, seed=0), 500)
    assert often[2:].sum() == 0
    assert often[:2].min() > 0


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-30, 1e-5])
def test_without_warmth_the_likeliest_comes(temperature: float) -> None:
    assert drawn(Sampling(temperature=temperature, seed=0), 20)[0] == 1
    huge = torch.tensor([[3e38, -3e38, 1e38]])
    assert choose_tokens(huge, [Sampler(Sampling(temperature=temperature))]).tolist() == [0]


def test_rows_that_are_drawn_leave_greedy_ones_alone() -> None:
    rows = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])
    samplers = [Sampler(Sampling()), Sampler(Sampling()), Sampler(Sampling(temperature=1, top_p=0.0))]
    assert choose_tokens(rows, samplers).tolist() == [0, 3, 0]
