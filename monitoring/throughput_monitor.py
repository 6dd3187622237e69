"""How fast a run trains and when it will be done.

Speed is tokens without padding over the time spent in training steps. Evaluations and checkpoints are no
training time, but a person who asks when the run ends waits for them too.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from monitoring.trends import Trend, judge

Confidence = Literal["high", "medium", "low"]

WINDOW_STEPS = 50
BASELINE_STEPS = 20
TREND_LEAST = 20
TREND_SHARE = 0.1
EMA_ALPHA = 0.1
ETA_STEPS = 20
ETA_LEAST = 5
HIGH_CONFIDENCE, MEDIUM_CONFIDENCE = 0.15, 0.35
"""Largest coefficients of variation of the seconds a step for these confidences."""
OVERRUN, OVERRUN_MARGIN = 1.1, 1.05


@dataclass(frozen=True, slots=True)
class ThroughputSnapshot:
    """The speed of a run now; None is what cannot be said yet."""

    tokens_per_sec: float | None
    """Over the last 50 steps."""
    tokens_per_sec_avg: float | None
    """Since the run began."""
    tokens_per_sec_smoothed: float | None
    """Moving average, which follows a drop within some ten steps; an alert compares it with the baseline."""
    tokens_per_sec_baseline: float | None
    """Of the first 20 steps, fixed from then on."""
    samples_per_sec: float | None
    throughput_trend: Trend
    """The newer half of the window against the older, within 10 %."""
    efficiency_ratio: float | None
    """The smoothed speed as a share of the baseline."""
    total_tokens: int
    training_seconds: float
    other_seconds: float
    """In evaluations, checkpoints and whatever else was reported."""


@dataclass(frozen=True, slots=True)
class Eta:
    """When a run will be done, and how far that can be trusted."""

    seconds: float
    confidence: Confidence
    total_steps: int
    """As planned, or corrected where more steps were seen than planned."""


@dataclass(frozen=True, slots=True)
class _Step:
    tokens: int
    seconds: float
    records: int


class ThroughputMonitor:
    """Follows the speed of one run; durations come from the caller's clock.

    The first step of a process is left out of every speed: it compiles, allocates and fills caches.
    """

    def __init__(self, window: int = WINDOW_STEPS) -> None:
        self._steps: deque[_Step] = deque(maxlen=window)
        self._is_warm = False
        self._total_tokens = 0
        self._measured = _Step(0, 0.0, 0)
        self._count = 0
        self._baseline: float | None = None
        self._smoothed: tuple[float, float] | None = None
        self._others: dict[str, list[float]] = {}

    def observe_step(self, tokens: int, seconds: float, records: int = 0) -> None:
        """Take one optimizer step: its tokens without padding, and how long it trained."""
        self._total_tokens += tokens
        if not self._is_warm:
            self._is_warm = True
            return
        self._steps.append(_Step(tokens, seconds, records))
        self._count += 1
        done = self._measured
        self._measured = _Step(done.tokens + tokens, done.seconds + seconds, done.records + records)
        before = self._smoothed or (float(tokens), seconds)
        self._smoothed = (
            before[0] + EMA_ALPHA * (tokens - before[0]),
            before[1] + EMA_ALPHA * (seconds - before[1]),
        )
        if self._count == BASELINE_STEPS:
            self._baseline = _rate([self._measured])

    def observe_other(self, kind: str, seconds: float) -> None:
        """Take the time of something that is not training, for instance an ``evaluation``."""
        self._others.setdefault(kind, []).append(seconds)

    def snapshot(self) -> ThroughputSnapshot:
        """Return what can be said now."""
        smoothed, baseline = self._smoothed_rate(), self._baseline
        return ThroughputSnapshot(
            tokens_per_sec=_rate(self._steps),
            tokens_per_sec_avg=_rate([self._measured]),
            tokens_per_sec_smoothed=smoothed,
            tokens_per_sec_baseline=baseline,
            samples_per_sec=self._samples_per_second(),
            throughput_trend=self._trend(),
            efficiency_ratio=smoothed / baseline if smoothed is not None and baseline else None,
            total_tokens=self._total_tokens,
            training_seconds=self._measured.seconds,
            other_seconds=math.fsum(map(math.fsum, self._others.values())),
        )

    def eta(self, step: int, total_steps: int, remaining: dict[str, int] | None = None) -> Eta | None:
        """Return when the run is done; None before the first measured step.

        `remaining` says how often each kind of `observe_other` is still to come; kinds it does not name go
        on as often, a step, as they have come so far.
        """
        if not self._steps:
            return None
        total = corrected_total(total_steps, step)
        left = max(0, total - step)
        recent = [one.seconds for one in self._steps][-ETA_STEPS:]
        seconds = left * _weighted_mean(recent) + self._other_time(left, remaining or {})
        return Eta(seconds, _confidence(recent), total)

    def _other_time(self, left: int, remaining: dict[str, int]) -> float:
        planned = math.fsum(
            count * fmean(self._others[kind]) for kind, count in remaining.items() if kind in self._others
        )
        unplanned = math.fsum(
            math.fsum(seconds) for kind, seconds in self._others.items() if kind not in remaining
        )
        return planned + left * unplanned / self._count

    def _smoothed_rate(self) -> float | None:
        tokens, seconds = self._smoothed or (0.0, 0.0)
        return tokens / seconds if seconds > 0 else None

    def _samples_per_second(self) -> float | None:
        records = sum(one.records for one in self._steps)
        seconds = math.fsum(one.seconds for one in self._steps)
        return records / seconds if records and seconds > 0 else None

    def _trend(self) -> Trend:
        steps = list(self._steps)
        if len(steps) < TREND_LEAST:
            return "insufficient_data"
        half = len(steps) // 2
        older, newer = _rate(steps[:half]), _rate(steps[-half:])
        if older is None or newer is None:
            return "insufficient_data"
        return judge(newer - older, TREND_SHARE * older, lower_is_better=False)


def corrected_total(planned: int, seen: int) -> int:
    """Return the steps of a run, guessed anew when 10 % more than `planned` were `seen` already."""
    return math.ceil(seen * OVERRUN_MARGIN) if seen > OVERRUN * planned else max(planned, seen)


def _rate(steps: Iterable[_Step]) -> float | None:
    tokens, seconds = 0, 0.0
    for one in steps:
        tokens, seconds = tokens + one.tokens, seconds + one.seconds
    return tokens / seconds if seconds > 0 else None


def _weighted_mean(values: Sequence[float]) -> float:
    """Weigh the values 1, 2, 3 … towards the newest."""
    total = math.fsum(weight * value for weight, value in enumerate(values, 1))
    return total / (len(values) * (len(values) + 1) / 2)


def _confidence(seconds: Sequence[float]) -> Confidence:
    mean = fmean(seconds)
    if len(seconds) < ETA_LEAST or mean <= 0:
        return "low"
    variation = pstdev(seconds) / mean
    if variation < HIGH_CONFIDENCE:
        return "high"
    return "medium" if variation < MEDIUM_CONFIDENCE else "low"
