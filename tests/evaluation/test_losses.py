"""Log-probabilities of supervised tokens, from a head that runs on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evaluation.losses import target_log_probs

SEQUENCES = [list(range(4, 24)), list(range(30, 39)), [7, 8, 9, 10, 11]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def alone(model: Any, ids: list[int], positions: list[int]) -> torch.Tensor:
    """Compute the same from the whole logits, as the textbook does."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return torch.stack([logits[at, ids[at + 1]] for at in positions])


def test_they_are_those_of_the_whole_logits(model: Any) -> None:
    ids, positions = SEQUENCES[0], [3, 4, 11]
    with torch.no_grad():
        found = target_log_probs(
            model,
            torch.tensor([ids]),
            torch.tensor(positions),
            torch.tensor([ids[at + 1] for at in positions]),
        )
    torch.testing.assert_close(found, alone(model, ids, positions))


def test_padding_on_the_right_changes_nothing(model: Any) -> None:
    width = max(map(len, SEQUENCES))
    padded = torch.tensor([ids + [3] * (width - len(ids)) for ids in SEQUENCES])
    positions = torch.tensor([number * width + 2 for number in range(3)])
    targets = torch.tensor([ids[3] for ids in SEQUENCES])
    with torch.no_grad():
        found = target_log_probs(model, padded, positions, targets)
    torch.testing.assert_close(found, torch.cat([alone(model, ids, [2]) for ids in SEQUENCES]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_do_not_see_each_other(attention: str, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=attention)
    packed = torch.tensor([[token for ids in SEQUENCES for token in ids]])
    position_ids = torch.tensor([[at for ids in SEQUENCES for at in range(len(ids))]])
    starts = [0, len(SEQUENCES[0]), len(SEQUENCES[0]) + len(SEQUENCES[1])]
    positions = torch.tensor([start + 3 for start in starts])
    targets = torch.tensor([ids[4] for ids in SEQUENCES])
    with torch.no_grad():
        found = target_log_probs(model, packed, positions, targets, position_ids)
    torch.testing.assert_close(
        found, torch.cat([alone(model, ids, [3]) for ids in SEQUENCES]), atol=1e-5, rtol=1e-5
    )


def test_the_model_is_left_as_it_was(model: Any) -> None:
    ids = torch.tensor([SEQUENCES[1]])
    before = model(ids).logits
    target_log_probs(model, ids, torch.tensor([1]), torch.tensor([5]))
    assert model(ids).logits.equal(before)


def test_the_head_is_not_run_where_nothing_is_supervised(model: Any) -> None:
    seen: list[int] = []
    handle = model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape[-2]))
    target_log_probs(model, torch.tensor([SEQUENCES[0]]), torch.tensor([3, 4]), torch.tensor([7, 8]))
    handle.remove()
    assert seen == [2]
