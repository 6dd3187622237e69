"""The interval of a share is Wilson's, and needs no numpy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.intervals import wilson


def test_wilson_gives_the_interval_of_the_textbook() -> None:
    # 15 of 20: centre (0.75 + z²/40) / (1 + z²/20), Wilson 1927.
    low, high = wilson(15, 20) or (0, 0)
    assert (round(low, 4), round(high, 4)) == (0.5313, 0.8881)


def test_wilson_of_none_and_of_all_touches_the_end_but_is_no_point() -> None:
    low, high = wilson(0, 10) or (1, 0)
    assert low == 0 and high == pytest.approx(0.27753, abs=1e-5)
    assert wilson(10, 10) == pytest.approx((1 - 0.27753, 1.0), abs=1e-5)


def test_wilson_of_nothing_is_unknown() -> None:
    assert wilson(0, 0) is None


def test_wilson_refuses_more_right_answers_than_questions() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


@given(st.integers(1, 500), st.data())
def test_wilson_always_holds_the_share_itself(total: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, total))
    low, high = wilson(correct, total) or (2, -1)
    assert 0 <= low <= correct / total <= high <= 1
