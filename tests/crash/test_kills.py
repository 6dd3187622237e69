"""A seeded sample of the kills: `make crash` kills at every call."""

from __future__ import annotations

import random

import pytest

from tests.crash.kills import ends_daemon, kill_each, kill_twice, with_both
from tests.crash.points import Point, Recording
from tests.crash.strike import Range, record
from tests.crash.tally import Tally

SEED = 20


def ignore(line: str) -> None:
    """Nobody watches the progress of a test."""


@pytest.fixture(scope="module")
def recording(nurseries: Range) -> Recording:
    with nurseries.nursery() as nursery:
        return record(nursery)


def sample(recording: Recording, process: str, count: int) -> list[Point]:
    points = [p for p in with_both(recording.points) if str(p).startswith(process)]
    return random.Random(SEED).sample(points, count)


def test_a_life_changes_nothing_outside_of_its_base_folder(recording: Recording) -> None:
    assert recording.strays == ()
    assert {point.process for point in recording.points} == {
        *("daemon", "daemon-thread", "worker-1", "worker-2", "worker-3")
    }


@pytest.mark.parametrize(
    ("process", "count"), [("daemon ", 20), ("daemon-thread", 4), ("worker", 10), ("daemon and worker", 20)]
)
def test_a_life_goes_on_after_a_kill(
    nurseries: Range, recording: Recording, process: str, count: int
) -> None:
    tally = Tally()
    kill_each(nurseries, sample(recording, process, count), tally, ignore)
    assert tally.failures == []


def test_a_life_goes_on_after_its_recovery_was_killed(nurseries: Range, recording: Recording) -> None:
    tally = Tally()
    first = [point for point in sample(recording, "daemon and worker", 3) if ends_daemon(point)]
    kill_twice(nurseries, first, tally, ignore, SEED)
    assert tally.failures == []
