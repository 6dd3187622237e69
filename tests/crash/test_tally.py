"""What was counted adds up, and no failure is forgotten."""

from __future__ import annotations

from tests.crash.tally import Tally


def test_parts_add_up_to_one_line() -> None:
    kills, planted = Tally(kill_points=3), Tally(planted_bugs=2, planted_bugs_caught=1)
    kills.fail("daemon rename#1 a", "double", "record 'x' trained 2 times")
    total = kills + planted
    assert str(total) == (
        "crash: kill_points=3 cuts=0 faults=0 sequences=0 bad_inputs=0 planted_bugs_caught=1/2 "
        "lost=0 double=1 half=0"
    )
    assert total.failures == ["daemon rename#1 a: double: record 'x' trained 2 times"]
