"""The loss of single steps, smoothed: what it is now, how noisy, and where it is going."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from monitoring.trends import Trend, judge

EMA_ALPHA = 0.1
WINDOW_STEPS = 50
TREND_STEPS = 10
TREND_SHARE = 0.05
RECENT_LOSSES = 10
RECENT_NATS = 0.01
RECENT_LEAST = 3
LARGEST_LOSS = 1e100
"""What lies beyond is no loss, and its square no number."""


@dataclass(frozen=True, slots=True)
class StreamingSnapshot:
    """What the losses say now; None is what cannot be said yet."""

    streaming_ce: float | None
    """Exponential moving average of the loss, in nats."""
    loss_variance: float | None
    """Population variance of the last 50 losses."""
    token_entropy: float | None
    """Mean entropy of the predictions over the last 50 steps, in nats; each token counts once."""
    loss_trend: Trend
    """The last 10 losses against the 10 before, within 5 %."""
    recent_trend: Trend
    """One half of the last 10 losses against the other, within 0.01 nats; from 3 losses on."""
    skipped: int
    """Losses left out because they were not finite, or absurdly large."""


class StreamingMetrics:
    """Follows the loss of one run, step by step.

    A loss that is not finite is counted and left out: in an average it would stay for ever.
    """

    def __init__(self, alpha: float = EMA_ALPHA, window: int = WINDOW_STEPS) -> None:
        """`alpha` is the weight of the newest loss in the average; the first one starts it."""
        self._alpha = alpha
        self._ema: float | None = None
        self._losses: deque[float] = deque(maxlen=max(window, 2 * TREND_STEPS))
        self._window = window
        self._entropies: deque[tuple[float, int]] = deque(maxlen=window)
        self._skipped = 0

    def observe(self, loss: float, entropy: float | None = None, tokens: int = 1) -> None:
        """Take the loss of a step, and the mean entropy of its `tokens` predictions where known."""
        if entropy is not None and math.isfinite(entropy) and tokens > 0:
            self._entropies.append((entropy, tokens))
        if not abs(loss) < LARGEST_LOSS:
            self._skipped += 1
            return
        self._losses.append(loss)
        self._ema = loss if self._ema is None else (1 - self._alpha) * self._ema + self._alpha * loss

    def snapshot(self) -> StreamingSnapshot:
        """Return what can be said now."""
        losses = list(self._losses)
        window = losses[-self._window :]
        return StreamingSnapshot(
            streaming_ce=self._ema,
            loss_variance=variance(window),
            token_entropy=self._token_entropy(),
            loss_trend=loss_trend(losses),
            recent_trend=recent_trend(losses),
            skipped=self._skipped,
        )

    def _token_entropy(self) -> float | None:
        tokens = sum(count for _, count in self._entropies)
        return math.fsum(mean * count for mean, count in self._entropies) / tokens if tokens else None


def variance(losses: Sequence[float]) -> float | None:
    """Return the population variance, or None of fewer than two."""
    if len(losses) < 2:
        return None
    mean = fmean(losses)
    return fmean((loss - mean) * (loss - mean) for loss in losses)


def loss_trend(losses: Sequence[float]) -> Trend:
    """Compare the last 10 losses with the 10 before them; 5 % is a change."""
    if len(losses) < 2 * TREND_STEPS:
        return "insufficient_data"
    before = fmean(losses[-2 * TREND_STEPS : -TREND_STEPS])
    change = fmean(losses[-TREND_STEPS:]) - before
    return judge(change, TREND_SHARE * abs(before), lower_is_better=True)


def recent_trend(losses: Sequence[float]) -> Trend:
    """Compare the halves of the last 10 losses, without the middle one of an odd number; 0.01 is a change."""
    recent = losses[-RECENT_LOSSES:]
    if len(recent) < RECENT_LEAST:
        return "insufficient_data"
    half = len(recent) // 2
    return judge(fmean(recent[-half:]) - fmean(recent[:half]), RECENT_NATS, lower_is_better=True)
