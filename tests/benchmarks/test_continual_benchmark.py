"""The numbers of the continual benchmark."""

from __future__ import annotations

from benchmarks.continual import summary
from evaluation.transfer import Transfer


def test_nothing_forgotten_is_zero_without_a_sign() -> None:
    found = [summary(Transfer(1.0, change, None))["forgetting"] for change in (0.0, 0.0001, -0.25, None)]
    assert [str(value) for value in found] == ["0.0", "0.0", "25.0", "None"]
