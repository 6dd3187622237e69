"""Promote or hold: a new version is held only when it is significantly worse than what it would replace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from config import PromotionConfig

RESAMPLES = 4999
_NUMBERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes current, and the numbers that say so.

    `mean_difference` and `interval` are of after - before in nats per token, so that negative is better;
    None where nothing could be compared.
    """

    decide: Literal["promote", "hold"]
    reason: str
    mean_difference: float | None = None
    interval: tuple[float, float] | None = None


def decide(before: Sequence[float], after: Sequence[float], config: PromotionConfig, seed: int) -> Decision:
    """Compare the losses of two models on the same held-out records, pair by pair.

    `before[i]` and `after[i]` are the losses of record i in nats per token. The candidate is held when the
    whole confidence interval of the mean difference (paired percentile bootstrap) lies above
    ``promotion.tolerance``, or when it gives a loss that is no number. With few records the interval is
    too narrow rather than too wide, which errs on the side of holding; a held version can be promoted by
    hand.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} losses before and {len(after)} after are not of the same records")
    if not before:
        return Decision("promote", "no held-out records to test on")
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    broken = int(np.count_nonzero(~np.isfinite(new)))
    if broken:
        return Decision("hold", f"held-out loss is not a number for {broken} of {len(new)} records")
    if not np.isfinite(old).all():
        return Decision("promote", "held-out loss is finite, and was not before")
    difference = float(np.mean(new - old))
    low, high = interval = _interval_of_mean(new - old, config.confidence, seed)
    numbers = (
        f"held-out loss {old.mean():.4f} → {new.mean():.4f} on {len(new)} records "
        f"({difference:+.4f}, {100 * config.confidence:g} % interval {low:+.4f} to {high:+.4f})"
    )
    if low > config.tolerance:
        reason = f"{numbers}: significantly worse than the tolerated {config.tolerance:+.4f}"
        return Decision("hold", reason, difference, interval)
    return Decision("promote", numbers, difference, interval)


def _interval_of_mean(values: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    if len(values) == 1:
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, _NUMBERS_AT_ONCE // len(values)),
        confidence_level=confidence,
        # The bias-corrected interval is undefined when all differences are equal.
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
