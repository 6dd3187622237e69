"""Which records an optimizer step trains, and how they become tensors."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_template import IGNORE
from training.batches import ReplayTurns, Row, StepPlan, collate, in_length_order
from training.replay import shares


def plan_of(
    lengths: list[int], micro_batch: int = 4, accumulation: int = 2, seed: int = 0, epoch: int = 0
) -> list[list[int]]:
    plan = StepPlan(np.array(lengths, dtype=np.int32), micro_batch, accumulation, seed)
    plan.set_epoch(epoch)
    assert len(plan) == len(list(plan))
    return list(plan)


def row(*sequences: tuple[list[int], list[int]]) -> Row:
    return Row(
        input_ids=[np.array(ids, dtype=np.int32) for ids, _ in sequences],
        labels=[np.array(labels, dtype=np.int32) for _, labels in sequences],
    )


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=700),
    micro_batch=st.integers(1, 9),
    accumulation=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_record_comes_once_an_epoch_in_as_few_steps_as_can_be(
    lengths: list[int], micro_batch: int, accumulation: int, epoch: int
) -> None:
    steps = plan_of(lengths, micro_batch, accumulation, epoch=epoch)
    counts = Counter(record for step in steps for record in step)
    assert counts == dict.fromkeys(range(len(lengths)), 1)
    assert len(steps) == math.ceil(len(lengths) / (micro_batch * accumulation))
    assert all(len(step) == micro_batch * accumulation for step in steps[:-1])


def test_the_order_depends_on_the_seed_and_the_epoch_and_nothing_else() -> None:
    lengths = list(range(1, 60))
    assert plan_of(lengths) == plan_of(lengths)
    assert plan_of(lengths) != plan_of(lengths, seed=1)
    assert plan_of(lengths) != plan_of(lengths, epoch=1)


def test_records_of_like_length_share_a_micro_batch() -> None:
    random = np.random.default_rng(0)
    lengths = [int(length) for length in random.integers(10, 400, 2000)]
    steps = plan_of(lengths, micro_batch=8, accumulation=1)
    padded = sum(len(step) * max(lengths[record] for record in step) for step in steps)
    assert padded < 1.1 * sum(lengths)


def test_steps_do_not_come_in_the_order_of_their_length() -> None:
    steps = plan_of(list(range(1, 200)), micro_batch=2, accumulation=1)
    longest = [max(step) for step in steps]
    assert longest != sorted(longest)


@pytest.mark.parametrize("packed", [False, True])
def test_each_target_is_predicted_from_the_token_before_it(packed: bool) -> None:
    rows = [
        row(([5, 6, 7, 8], [IGNORE, IGNORE, 7, 8])),
        row(([1, 2], [IGNORE, 2])),
        row(([3, 4, 9], [3, IGNORE, 9])),
    ]
    batch = collate(rows, packed=packed, pad_token_id=0)
    flat = batch.input_ids.flatten()
    assert batch.targets.tolist() == [7, 8, 2, 9]
    assert flat[batch.positions].tolist() == [6, 7, 1, 4]
    assert batch.counts == [2, 1, 1]
    assert batch.tokens == 9


def test_padding_is_on_the_right_and_packed_rows_have_none() -> None:
    rows = [row(([5, 6, 7], [IGNORE, 6, 7])), row(([1, 2], [IGNORE, 2]))]
    assert collate(rows, packed=False, pad_token_id=0).input_ids.tolist() == [[5, 6, 7], [1, 2, 0]]
    packed = collate(rows, packed=True, pad_token_id=0)
    assert packed.input_ids.tolist() == [[5, 6, 7, 1, 2]]
    assert packed.position_ids is not None
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1]]


def test_pairs_are_laid_out_chosen_first_then_rejected() -> None:
    rows = [
        row(([1, 2], [IGNORE, 2]), ([1, 3], [IGNORE, 3])),
        row(([4, 5], [IGNORE, 5]), ([4, 6], [IGNORE, 6])),
    ]
    batch = collate(rows, packed=False, pad_token_id=0)
    assert batch.input_ids.tolist() == [[1, 2], [4, 5], [1, 3], [4, 6]]
    assert batch.targets.tolist() == [2, 5, 3, 6]


def test_evaluation_takes_the_longest_records_first() -> None:
    lengths = np.array([3, 9, 5, 9], dtype=np.int32)
    assert list(in_length_order(lengths, 3)) == [[1, 3, 2], [0]]


@given(
    own=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    wanted=st.integers(0, 60),
    epoch=st.integers(0, 5),
)
def test_replayed_records_come_by_turns_beside_all_of_the_run_s_own(
    own: int, sizes: list[int], wanted: int, epoch: int
) -> None:
    ends = np.cumsum(sizes)
    ranges = {
        str(source): range(end - size, end)
        for source, (size, end) in enumerate(zip(sizes, ends, strict=True))
    }
    taken = shares(wanted, {source: len(its) for source, its in ranges.items()})
    turns = ReplayTurns(
        np.full(sum(sizes), 7, dtype=np.int32), {source: (ranges[source], taken[source]) for source in taken}
    )
    plan = StepPlan(np.full(own, 5, dtype=np.int32), 4, 2, 0, turns)
    plan.set_epoch(epoch)
    counts = Counter(record for step in plan for record in step)
    assert set(counts.values()) == {1}
    assert all(counts[number] == 1 for number in range(own))
    replayed = [number - own for number in counts if number >= own]
    assert {source: sum(number in ranges[source] for number in replayed) for source in taken} == taken
    assert len(plan) == math.ceil((own + len(replayed)) / 8)


def test_one_epoch_goes_on_in_a_source_where_the_one_before_ended() -> None:
    turns = ReplayTurns(np.full(5, 7, dtype=np.int32), {"a": (range(5), 2)})
    assert [turns.of_epoch(epoch).tolist() for epoch in range(3)] == [[0, 1], [2, 3], [4, 0]]
