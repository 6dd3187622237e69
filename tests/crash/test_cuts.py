"""A seeded sample of the power cuts: `make crash` makes hundreds, and cuts recoveries as well."""

from __future__ import annotations

import os

import pytest

from tests.crash import cuts
from tests.crash.cuts import SHOWN_BY_CUTS, Plan
from tests.crash.disks import FILE_SYSTEMS

SEED = 20
COPIES, REPLAYED = 8, 6


def ignore(line: str) -> None:
    """Nobody watches the progress of a test."""


@pytest.fixture(scope="module", autouse=True)
def _power() -> None:
    """Skip where no disks can be made and mounted; on the machine that judges changes they must be."""
    reason = cuts.reason_it_cannot_run()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(f"power cuts need {reason}")
    if reason is not None:
        pytest.skip(f"power cuts need {reason}")


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_a_life_goes_on_after_a_power_cut(file_system: str) -> None:
    plan = Plan(SEED, [file_system], copies=COPIES, replayed=REPLAYED, subsets=1, recoveries=0, bugs=())
    tally = cuts.run(ignore, plan)
    assert tally.failures == []
    assert tally.cuts == COPIES + REPLAYED


def test_a_bug_that_only_a_power_cut_shows_is_caught() -> None:
    tally = cuts.run(ignore, Plan(SEED, [], bugs=tuple(SHOWN_BY_CUTS)))
    assert (tally.planted_bugs_caught, tally.planted_bugs) == (3, 3)
