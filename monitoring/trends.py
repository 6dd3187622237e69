"""Whether a series gets better: the one word that several collectors say about theirs."""

from __future__ import annotations

from typing import Literal

Trend = Literal["improving", "stable", "degrading", "insufficient_data"]


def judge(change: float, tolerance: float, *, lower_is_better: bool) -> Trend:
    """Name a change; one no larger than `tolerance` in either direction is stable."""
    if abs(change) <= tolerance:
        return "stable"
    return "improving" if (change < 0) == lower_is_better else "degrading"
