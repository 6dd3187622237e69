"""Rows that a model continues together, with one cache; rows join and leave between two tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from serving.sampling import Sampler, choose_tokens


@dataclass
class _State:
    """What the model knows of some rows; the rows end at the same column, padded on the left."""

    cache: Any
    mask: torch.Tensor
    """Which columns of the cache count, shape ``(B, T)``."""
    tokens: torch.Tensor
    """The newest token of each row, not in the cache yet, shape ``(B,)``."""
    positions: torch.Tensor
    """Position of that token, shape ``(B,)``."""


class Batch:
    """Decodes rows with one adapter; which adapter is in use is the caller's business."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        """`model` is a transformers or PEFT causal language model in evaluation mode."""
        self._model = model
        self._pad = pad_token_id
        self._samplers: list[Sampler] = []
        self._state: _State | None = None

    def __len__(self) -> int:
        return len(self._samplers)

    @property
    def takes_more(self) -> bool:
        """Whether rows may join: only caches that keep every token the same way can be put together."""
        return self._state is None or all(type(layer) is DynamicLayer for layer in self._state.cache.layers)

    def join(self, prompts: Sequence[Sequence[int]], samplers: Sequence[Sampler]) -> list[int]:
        """Take prompts in as the last rows and return the first token of each answer.

        Nothing has changed when it raises torch.OutOfMemoryError.
        """
        state = self._read(prompts, samplers)
        if self._state is not None:
            state = _together(self._state, state)
        self._state = state
        self._samplers += samplers
        return [int(token) for token in state.tokens[-len(prompts) :].tolist()]

    def step(self) -> list[int]:
        """Return the next token of each row, in the order in which they joined."""
        state = self._state
        assert state is not None
        state.mask = functional.pad(state.mask, (0, 1), value=1)
        logits = self._forward(
            state.tokens.unsqueeze(1), state.mask, state.positions.unsqueeze(1), state.cache
        )
        state.tokens = choose_tokens(logits, self._samplers)
        state.positions += 1
        return [int(token) for token in state.tokens.tolist()]

    def keep(self, rows: Sequence[int]) -> None:
        """Let all other rows leave, and with them the columns that only they needed."""
        if not rows:
            self._samplers, self._state = [], None
            return
        state = self._state
        assert state is not None
        self._samplers = [self._samplers[row] for row in rows]
        chosen = torch.tensor(rows, device=state.mask.device)
        state.cache.batch_select_indices(chosen)
        state.mask, state.tokens = state.mask[chosen], state.tokens[chosen]
        state.positions = state.positions[chosen]
        if self.takes_more:
            _trim(state)

    def _read(self, prompts: Sequence[Sequence[int]], samplers: Sequence[Sampler]) -> _State:
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        cache = DynamicCache(config=self._model.config)
        positions = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        logits = self._forward(ids, mask, positions, cache)
        return _State(cache, mask, choose_tokens(logits, samplers), positions[:, -1] + 1)

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Return the logits after the last token of each row, shape ``(B, V)``."""
        # As everywhere a model is asked, so that it gives the same answers here.
        is_bf16 = self._model.dtype == torch.bfloat16
        precision = torch.autocast(self._model.device.type, torch.bfloat16, enabled=is_bf16)
        with torch.no_grad(), precision:
            output = self._model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits: torch.Tensor = output.logits[:, -1]
            return logits


def _together(first: _State, second: _State) -> _State:
    """Put the rows of two states into one, the shorter one padded on the left."""
    width = max(first.mask.shape[1], second.mask.shape[1])
    layers: list[list[torch.Tensor | None]] = []
    with torch.no_grad():
        for mine, theirs in zip(first.cache.layers, second.cache.layers, strict=True):
            if mine.is_initialized:
                pairs = ((mine.keys, theirs.keys), (mine.values, theirs.values))
                layers.append([torch.cat([_widen(part, width) for part in pair]) for pair in pairs])
            else:  # a layer that shares the cache of another one
                layers.append([None, None])
        masks = [functional.pad(each.mask, (width - each.mask.shape[1], 0)) for each in (first, second)]
        return _State(
            DynamicCache(layers),
            torch.cat(masks),
            torch.cat([first.tokens, second.tokens]),
            torch.cat([first.positions, second.positions]),
        )


def _widen(states: torch.Tensor, width: int) -> torch.Tensor:
    """Pad keys or values of shape ``(B, H, T, D)`` on the left."""
    return functional.pad(states, (0, 0, width - states.shape[2], 0))


def _trim(state: _State) -> None:
    """Drop the columns that no row needs any more."""
    unused = int(state.mask.any(dim=0).int().argmax())
    if unused:
        state.mask = state.mask[:, unused:]
        for layer in state.cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]
