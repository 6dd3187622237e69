"""Duplicates exactly, the held-out sample by seed and content alone."""

from __future__ import annotations

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intake.formats import content_key
from intake.selection import Accepted, HeldOutSample, SeenKeys


def records(count: int) -> list[tuple[bytes, Accepted]]:
    return [
        (content_key(b"%d" % number), Accepted(number, b"%d\n" % number, 1, 1)) for number in range(count)
    ]


def draw(sample: HeldOutSample, offered: list[tuple[bytes, Accepted]]) -> tuple[list[int], list[int]]:
    """Offer records; return the lines that are trained and those that are held out."""
    answers = [sample.offer(key, record) for key, record in offered]
    trained = [answer.line for answer in answers if answer is not None]
    return trained, [record.line for record in sample.take_all()]


@given(st.lists(st.binary(min_size=1, max_size=2)))
def test_a_key_is_new_only_once(keys: list[bytes]) -> None:
    known: set[bytes] = set()
    with SeenKeys() as seen:
        for key in keys:
            assert seen.add(key) == (key not in known)
            known.add(key)


def test_half_a_million_keys_are_remembered_in_less_memory_than_a_set_takes() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with SeenKeys() as seen:
        assert all(seen.add(content_key(b"%d" % number)) for number in range(500_000))
        assert not seen.add(content_key(b"0"))
        assert process.memory_info().rss - before < 48 * 2**20


@given(st.integers(0, 300), st.floats(0, 1), st.integers(0, 50), st.integers(-(2**31), 2**31))
def test_every_record_is_either_trained_or_held_out(
    count: int, fraction: float, most: int, seed: int
) -> None:
    trained, held = draw(HeldOutSample(fraction, most, seed), records(count))
    assert sorted(trained + held) == list(range(count))
    assert len(held) <= most
    assert held == sorted(held)


@given(st.permutations(records(60)), st.integers(0, 5))
def test_the_sample_depends_on_content_and_seed_not_on_order(
    shuffled: list[tuple[bytes, Accepted]], seed: int
) -> None:
    assert (
        draw(HeldOutSample(0.3, 10, seed), shuffled)[1] == draw(HeldOutSample(0.3, 10, seed), records(60))[1]
    )


def test_another_seed_holds_out_other_records() -> None:
    assert (
        draw(HeldOutSample(0.1, 100, 1), records(1000))[1]
        != draw(HeldOutSample(0.1, 100, 2), records(1000))[1]
    )


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_the_share_is_about_what_was_asked(fraction: float) -> None:
    _, held = draw(HeldOutSample(fraction, 10_000, 3), records(4000))
    assert abs(len(held) / 4000 - fraction) < 0.02


def test_a_small_sample_comes_from_all_over_the_file() -> None:
    _, held = draw(HeldOutSample(0.5, 100, 3), records(10_000))
    assert len(held) == 100
    assert min(held) < 1000 and max(held) > 9000
