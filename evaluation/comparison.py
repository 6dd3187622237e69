"""Two models on the same records: what is a difference, and what is chance. Pure statistics.

Everything is about pairs: `before[i]` and `after[i]` are of the same record. Losses are nats per token, so
that a positive difference is worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 4999
_NUMBERS_AT_ONCE = 4_000_000

Alternative = Literal["two-sided", "worse", "better"]


@dataclass(frozen=True)
class Discordance:
    """Records on which two models differ, and how likely so lopsided a split is by chance."""

    gained: int
    """Wrong before, right after."""
    lost: int
    """Right before, wrong after."""
    p_value: float


@dataclass(frozen=True)
class Difference:
    """Mean of after - before over the records, with its confidence interval and p-value."""

    mean: float
    interval: tuple[float, float]
    p_value: float


def mcnemar_exact(
    before: Sequence[bool], after: Sequence[bool], alternative: Alternative = "two-sided"
) -> Discordance:
    """Test whether as many records were lost as gained: the exact binomial form of McNemar's test."""
    _same_length(before, after)
    pairs = list(zip(before, after, strict=True))
    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    if gained + lost == 0:
        return Discordance(0, 0, 1.0)
    side = {"two-sided": "two-sided", "worse": "greater", "better": "less"}[alternative]
    return Discordance(gained, lost, float(stats.binomtest(lost, gained + lost, 0.5, side).pvalue))


def paired_bootstrap(
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    alternative: Alternative = "two-sided",
    margin: float = 0.0,
) -> Difference:
    """Compare losses pair by pair; every value must be finite and there must be at least one pair.

    Percentile bootstrap over records, widened by sqrt(n / (n - 1)): resampling n records shows that much
    too little variance, which matters for few of them. The p-value is of a difference of at most `margin`
    (worse), at least `-margin` (better), or none at all (two-sided). It is never below that of Student's t:
    resamples of a handful of records agree too readily. Where no resample lies on the other side it is that
    of t, since so many tests may be corrected together that 1 / RESAMPLES is much. One record proves nothing.
    """
    _same_length(before, after)
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not len(differences) or not np.isfinite(differences).all():
        raise ValueError("a paired bootstrap needs pairs of finite losses")
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        means = np.full(RESAMPLES, mean)
    else:
        widening = math.sqrt(len(differences) / (len(differences) - 1))
        resampled = _resampled_means(differences, np.random.default_rng(seed))
        means = mean + widening * (resampled - mean)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    p_value = {
        "worse": lambda: _tail(means - margin, differences - margin),
        "better": lambda: _tail(-means - margin, -differences - margin),
        "two-sided": lambda: min(1.0, 2 * min(_tail(means, differences), _tail(-means, -differences))),
    }[alternative]()
    return Difference(mean, (float(low), float(high)), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being many, in the order given.

    S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = highest
    return adjusted


def noise_floor(losses: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> float:
    """Return by how much a model seems worse than itself only because other records were drawn.

    The `confidence` quantile of the mean of one resample less the mean of another; 0 for a single record.
    """
    values = np.asarray(losses, dtype=np.float64)
    if len(values) < 2:
        return 0.0
    generator = np.random.default_rng(seed)
    difference = _resampled_means(values, generator) - _resampled_means(values, generator)
    return max(0.0, float(np.quantile(difference, confidence)))


def _resampled_means(values: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the means of RESAMPLES samples with replacement, shape ``(RESAMPLES,)``."""
    rows = max(1, _NUMBERS_AT_ONCE // len(values))
    parts = [
        values[generator.integers(0, len(values), size=(min(rows, RESAMPLES - at), len(values)))].mean(axis=1)
        for at in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def _tail(means: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """Return how likely `values` are above zero by chance, of which `means` are the resampled means."""
    below = int(np.count_nonzero(means <= 0))
    by_resampling = (1 + below) / (1 + len(means))
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    if not error:  # nothing is known of the noise: as many coins as there are records, all of them heads
        return max(by_resampling if below else 0.0, float(0.5 ** len(values)))
    by_t = float(stats.t.sf(values.mean() / error, len(values) - 1))
    return max(by_resampling, by_t) if below else by_t


def _same_length(before: Sequence[object], after: Sequence[object]) -> None:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after are not of the same records")
