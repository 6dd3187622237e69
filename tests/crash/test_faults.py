"""A seeded sample of the faults: `make crash` has every call fail."""

from __future__ import annotations

import random

import pytest

from tests.crash.faults import ALWAYS, SOMETIMES, fail_each
from tests.crash.strike import Range, record
from tests.crash.tally import Tally

SEED = 20


@pytest.mark.parametrize(("errors", "count"), [(ALWAYS, 24), (SOMETIMES, 8)])
def test_a_failing_call_is_waited_out_or_fails_the_job_with_its_reason(
    nurseries: Range, errors: tuple[str, ...], count: int
) -> None:
    with nurseries.nursery() as nursery:
        points = random.Random(SEED + len(errors)).sample(record(nursery).points, count)
    tally = Tally()
    faults = [(point, errors[number % len(errors)]) for number, point in enumerate(points)]
    fail_each(nurseries, faults, tally, lambda line: None)
    assert tally.failures == []
