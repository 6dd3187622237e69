"""The benchmark of what a crowd costs: what it concludes from steps whose moments are known."""

from __future__ import annotations

import pytest

from benchmarks.busy_worker import Step
from benchmarks.monitor import Ratio, Stretch, compare

ROUNDS, STRETCH_SECONDS = 6, 1.0


def run(seconds_alone: float, seconds_watched: float) -> tuple[Ratio, Ratio]:
    """Compare the stretches of a run whose steps take so long."""
    order = (False, True, True, False) * ROUNDS
    stretches = [
        Stretch(is_watched, number * STRETCH_SECONDS, (number + 1) * STRETCH_SECONDS)
        for number, is_watched in enumerate(order)
    ]
    steps, now = [Step(-1.0, -0.5, 0.0)], 0.0
    for stretch in stretches:
        while now < stretch.ended_at:
            now += seconds_watched if stretch.is_watched else seconds_alone
            steps.append(Step(now, now, now))
    return compare(stretches, steps)


@pytest.mark.parametrize(("slower", "verdict"), [(1.0, "met"), (1.005, "met"), (1.25, "not met")])
def test_neighbours_of_which_one_is_watched_tell_what_watching_costs(slower: float, verdict: str) -> None:
    ratio, null_ratio = run(0.0005, 0.0005 * slower)
    assert (ratio.pairs, null_ratio.pairs) == (2 * ROUNDS, ROUNDS - 1)
    assert ratio.mean == pytest.approx(1 / slower, abs=0.002)
    assert null_ratio.mean == pytest.approx(1.0, abs=0.002)
    assert ratio.verdict == verdict


def test_nothing_is_decided_while_the_limit_lies_in_the_interval() -> None:
    ratio = Ratio.of([0.9, 1.1, 0.95, 1.05])
    assert ratio.low < ratio.mean < ratio.high
    assert ratio.verdict == "not decided"
