"""Kill daemon, worker, or both at every call that changes something, and kill what recovers from it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from tests.crash.nursery import Nursery
from tests.crash.points import Point, Recording
from tests.crash.strike import (
    TRIES,
    Missed,
    Range,
    Say,
    Strike,
    carry_out,
    kill,
    open_range,
    record,
)
from tests.crash.tally import Tally

FIRST_KILLS = 80
"""Lives of which the recovery is killed, too: that many of the points, each at `SECOND_KILLS` calls."""
SECOND_KILLS = 4
MISSED_SHARE = 0.1
"""What is written by the clock is not met in every life; more than this share would be broken traps."""


def run(say: Say, seed: int = 0) -> Tally:
    """Kill at every call once, and again while a sample of them is being recovered from."""
    tally = Tally()
    with open_range() as range_:
        with range_.nursery() as nursery:
            recording = record(nursery)
        tally_strays(recording, tally)
        points = with_both(recording.points)
        say(f"kills: {len(points)} points")
        kill_each(range_, points, tally, say)
        first = random.Random(seed).sample([p for p in points if ends_daemon(p)], FIRST_KILLS)
        say(f"kills: the recovery from {len(first)} of them")
        kill_twice(range_, first, tally, say, seed)
    return tally


def kill_each(range_: Range, points: Sequence[Point], tally: Tally, say: Say) -> None:
    """Kill one life at each of `points`."""
    strikes = [Strike(str(point), partial(kill, points=(point,))) for point in points]
    hits = carry_out(range_, strikes, tally, say)
    tally.kill_points += hits
    assert hits >= (1 - MISSED_SHARE) * len(strikes) - 1, (
        f"only {hits} of {len(strikes)} traps caught anything"
    )


def kill_twice(range_: Range, first: Sequence[Point], tally: Tally, say: Say, seed: int = 0) -> None:
    """Kill the recovery from each of `first` at a few of its calls."""
    choose = random.Random(seed)
    pairs = [
        (point, replace(second, takes_daemon_along=second.process.startswith("worker")))
        for point, recovery in zip(first, range_.map(_recovery, first), strict=True)
        for second in choose.sample(recovery, min(SECOND_KILLS, len(recovery)))
    ]
    strikes = [Strike(f"{one}, then {two}", partial(kill, points=(one, two))) for one, two in pairs]
    hits = carry_out(range_, strikes, tally, say)
    tally.kill_points += hits
    assert hits >= (1 - 2 * MISSED_SHARE) * len(strikes), f"only {hits} of {len(strikes)} second traps caught"


def _recovery(nursery: Nursery, point: Point) -> tuple[Point, ...]:
    """Return the calls of the daemon that goes on after a kill at `point`."""
    for _ in range(TRIES):
        with suppress(Missed):
            return record(nursery, point).points
    return ()


def tally_strays(recording: Recording, tally: Tally) -> None:
    """Count every call that changed something outside of the base folder."""
    for stray in recording.strays:
        tally.fail(
            "the undisturbed life", "half", f"it changed something outside of the base folder: {stray}"
        )


def with_both(points: Sequence[Point]) -> list[Point]:
    """Add, to each point of a worker, the same with the daemon killed along with it."""
    together = [replace(p, takes_daemon_along=True) for p in points if p.process.startswith("worker")]
    return [*points, *together]


def ends_daemon(point: Point) -> bool:
    """Tell whether a kill at this point needs a new daemon to go on."""
    return point.takes_daemon_along or not point.process.startswith("worker")
