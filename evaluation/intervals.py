"""Intervals of shares, without numpy, so that whoever shows a result can also show how sure it is."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return Wilson's score interval of a share; None when there is nothing to share.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is no share")
    if total == 0:
        return None
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = correct / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / total + weight / (4 * total)) / (1 + weight)
    low = 0.0 if correct == 0 else centre - half
    return low, 1.0 if correct == total else centre + half
