"""Two kills of the real worker: `make crash` does twenty."""

from __future__ import annotations

from pathlib import Path

from tests.crash.real import PRELOAD, kill_some
from tests.crash.strike import open_range
from tests.crash.tally import Tally

KILLS = 2


def test_a_killed_run_learns_the_same_bit_for_bit(strace: None, tiny_model: Path) -> None:
    tally = Tally()
    with open_range(PRELOAD) as nurseries:
        kill_some(nurseries, tiny_model, KILLS, tally, lambda line: None)
    assert tally.failures == []
