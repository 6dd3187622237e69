"""Which records an optimizer step trains, and how they become tensors.

One item of the plan is one optimizer step, so a step is known by its number alone: a resumed run goes on
with exactly the records it would have had, and every record is trained once an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from chat_template import IGNORE
from training.dataset import TokenRows
from training.replay import shares

MEGA_BATCHES = 64
"""Micro-batches shuffled together before their records are sorted by length."""


class Row(TypedDict):
    """One record: its sequences of token ids and labels (one, or two for a preference pair)."""

    input_ids: Sequence[NDArray[np.int32]]
    labels: Sequence[NDArray[np.int32]]


@dataclass(frozen=True)
class ReplayTurns:
    """Which replayed rows come in which epoch: of each source as many, the next ones in turn."""

    lengths: NDArray[np.int32]
    shares: Mapping[str, tuple[range, int]]
    """By source: its row numbers, and how many of them an epoch takes; never more than there are."""

    @property
    def rows_per_epoch(self) -> int:
        return sum(count for _, count in self.shares.values())

    def of_epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return the row numbers of one epoch, each at most once."""
        turns = [
            rows.start + (np.arange(count) + epoch * count) % len(rows)
            for rows, count in self.shares.values()
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *turns])


def replay_turns(rows: TokenRows, drawn: Mapping[str, int], wanted: int) -> ReplayTurns:
    """Plan `wanted` rows of each epoch; `drawn` says how many records each source has, one after another."""
    lines = np.asarray(rows.lines)
    ends = np.cumsum(list(drawn.values()))
    # A record may be left without a row, where it is longer than it may be today.
    places = [0, *(int(place) for place in np.searchsorted(lines, ends, side="right"))]
    ranges = {source: range(*place) for source, place in zip(drawn, pairwise(places), strict=True)}
    given = shares(wanted, {source: len(its) for source, its in ranges.items()})
    return ReplayTurns(rows.lengths, {source: (ranges[source], count) for source, count in given.items()})


class StepPlan(Sampler[list[int]]):
    """The record numbers of each optimizer step of the epoch set by `set_epoch`, in order.

    Records of like length come together: the shuffled records are sorted inside mega-batches, cut into
    micro-batches, and the micro-batches are shuffled again. The last step of an epoch may be smaller.
    Replayed records are shuffled in among the run's own; their numbers follow after those.
    """

    def __init__(
        self,
        lengths: NDArray[np.int32],
        micro_batch: int,
        accumulation: int,
        seed: int,
        replay: ReplayTurns | None = None,
    ) -> None:
        self._own = len(lengths)
        self._replay = replay
        self._lengths = lengths if replay is None else np.concatenate([lengths, replay.lengths])
        self._micro_batch = micro_batch
        self._accumulation = accumulation
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        rows = self._own + (0 if self._replay is None else self._replay.rows_per_epoch)
        return math.ceil(rows / (self._micro_batch * self._accumulation))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        micro_batches = self._micro_batches(np.random.default_rng([self._seed, self.epoch]))
        for first in range(0, len(micro_batches), self._accumulation):
            step = micro_batches[first : first + self._accumulation]
            yield [int(record) for micro_batch in step for record in micro_batch]

    def _micro_batches(self, random: np.random.Generator) -> list[NDArray[np.int64]]:
        """Cut the epoch's order into micro-batches; only the very last may be smaller than the others."""
        order = self._records()
        order = order[random.permutation(len(order))]
        size = self._micro_batch
        # The odd records are set aside first, so that every other micro-batch is full.
        odd = order[len(order) - len(order) % size :]
        order = order[: len(order) - len(odd)]
        full: list[NDArray[np.int64]] = []
        for first in range(0, len(order), size * MEGA_BATCHES):
            mega = order[first : first + size * MEGA_BATCHES]
            mega = mega[np.argsort(self._lengths[mega], kind="stable")]
            cut = mega.reshape(-1, size)
            full.extend(cut[random.permutation(len(cut))])
        return [*full, odd] if len(odd) else full

    def _records(self) -> NDArray[np.int64]:
        """Return the numbers of the records that the epoch trains."""
        own = np.arange(self._own)
        return own if self._replay is None else np.append(own, self._own + self._replay.of_epoch(self.epoch))


@dataclass(frozen=True)
class Batch:
    """Sequences ready for one forward pass.

    `positions` are indices into the flattened ``(B * T)`` hidden states, one for each trained token, and
    `targets` the tokens to be predicted there, sequence by sequence; `counts` says how many belong to each
    sequence. There is no attention mask: padding is on the right, where causal attention never looks from,
    and packed sequences are told apart by `position_ids` that start again at 0.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor | None
    positions: torch.Tensor
    targets: torch.Tensor
    counts: list[int]
    tokens: int
    """Tokens without padding."""

    def to(self, device: torch.device) -> Batch:
        """Copy the tensors to `device`."""
        if device.type == "cpu":
            return self
        return Batch(
            input_ids=self.input_ids.to(device),
            position_ids=None if self.position_ids is None else self.position_ids.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
            counts=self.counts,
            tokens=self.tokens,
        )


def collate(rows: Sequence[Row], *, packed: bool, pad_token_id: int) -> Batch:
    """Put the sequences of `rows` into one batch: all the first ones, then all the second ones."""
    order = [(row, at) for at in range(len(rows[0]["input_ids"])) for row in rows]
    ids = [np.asarray(row["input_ids"][at], dtype=np.int64) for row, at in order]
    labels = [np.asarray(row["labels"][at], dtype=np.int64) for row, at in order]
    lengths = [len(sequence) for sequence in ids]
    if packed:
        starts = np.cumsum([0, *lengths[:-1]])
        input_ids = np.concatenate(ids)[None]
        position_ids = torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])[None])
    else:
        width = max(lengths)
        starts = np.arange(len(ids)) * width
        input_ids = np.full((len(ids), width), pad_token_id, dtype=np.int64)
        for row_number, sequence in enumerate(ids):
            input_ids[row_number, : len(sequence)] = sequence
        position_ids = None
    # The hidden state at t predicts the token at t + 1.
    trained = [np.flatnonzero(sequence[1:] != IGNORE) for sequence in labels]
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=position_ids,
        positions=torch.from_numpy(
            np.concatenate([at + start for at, start in zip(trained, starts, strict=True)])
        ),
        targets=torch.from_numpy(
            np.concatenate([sequence[1:][at] for sequence, at in zip(labels, trained, strict=True)])
        ),
        counts=[len(at) for at in trained],
        tokens=sum(lengths),
    )


def in_length_order(lengths: NDArray[np.int32], size: int) -> Iterator[list[int]]:
    """Yield groups of `size` record numbers, longest first, so that too little memory shows at once."""
    order = np.argsort(-lengths, kind="stable")
    for first in range(0, len(order), size):
        yield [int(record) for record in order[first : first + size]]
