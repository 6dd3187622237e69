"""Judgements that need a memory: what is unusual is measured against what this run did before.

Losses are compared as logarithms, since their noise grows with them. A baseline never holds the value that
is judged, and medians keep a single bad batch from moving it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from statistics import median

from monitoring.judgements import above
from monitoring.observation import GOOD, UNSURE, Observation, Thresholds, Verdict

SMALLEST_LOSS = 1e-6
NORMAL_MAD = 1.4826
"""The standard deviation of normal noise as a multiple of its median absolute deviation."""
MEDIAN_ERROR = 1.2533
"""The standard error of a median as a multiple of that of a mean, for normal noise."""
LEAST_NOISE = 0.05
"""A series may look quieter than it is."""


def _log(loss: float) -> float:
    return math.log(max(loss, SMALLEST_LOSS))


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None


def step_noise(logs: Iterable[float]) -> float:
    """Return the standard deviation of the noise of single steps, whatever the trend under it."""
    changes = [abs(after - before) for before, after in pairwise(logs)]
    return NORMAL_MAD * median(changes) / math.sqrt(2) if changes else 0.0


class SpikeDetector:
    """One loss far above those just before it."""

    WINDOW, LEAST = 50, 10

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._logs: deque[float] = deque(maxlen=self.WINDOW)

    def judge(self, now: Observation) -> Verdict | None:
        if (loss := _finite(now.loss)) is None:
            return None
        verdict = self._against_baseline(loss, now.step) if len(self._logs) >= self.LEAST else None
        self._logs.append(_log(loss))
        return verdict

    def _against_baseline(self, loss: float, step: int | None) -> Verdict:
        limits, center = self._limits, median(self._logs)
        deviation = median(abs(one - center) for one in self._logs)
        spread = max(NORMAL_MAD * deviation, LEAST_NOISE)
        usual, rise = math.exp(center), _log(loss) - center
        needed = max(math.log(limits.loss_spike_ratio), limits.loss_spike_noise * spread)
        if rise > needed and loss - usual > limits.loss_least_nats:
            return Verdict(
                "bad",
                f"loss {loss:.4g} at step {step} is {loss / usual:.1f} times the median {usual:.4g} of the "
                f"{len(self._logs)} steps before: one bad batch, or the beginning of trouble",
                {"loss": loss, "median": usual, "ratio": loss / usual, "deviations": rise / spread},
            )
        return GOOD if rise < 0.6 * needed else UNSURE


class DivergenceDetector:
    """The loss rises for good: above where the run began, or far above where it was."""

    RECENT, FIRST = 20, 5
    FROM_START_ERRORS, FROM_BEST_ERRORS = 4.0, 8.0
    """Standard errors by which it must rise; the lowest of many medians is low by chance."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._recent: deque[float] = deque(maxlen=self.RECENT)
        self._noise: deque[float] = deque(maxlen=50)
        self._first: list[float] = []
        self._best: float | None = None

    def judge(self, now: Observation) -> Verdict | None:
        if (loss := _finite(now.loss)) is None:
            return None
        log = _log(loss)
        self._noise.append(log)
        if len(self._first) < self.FIRST:
            self._first.append(log)
            return None
        self._recent.append(log)
        if len(self._recent) < self.RECENT // 2:
            return None
        level = median(self._recent)
        verdict = self._compare(level, now.step)
        if len(self._recent) == self.RECENT and (self._best is None or level < self._best):
            self._best = level
        return verdict

    def _compare(self, level: float, step: int | None) -> Verdict:
        noise = MEDIAN_ERROR * step_noise(self._noise)
        error, first_error = noise / math.sqrt(len(self._recent)), noise / math.sqrt(self.FIRST)
        from_start = max(
            math.log(self._limits.divergence_above_start),
            self.FROM_START_ERRORS * math.hypot(error, first_error),
        )
        from_best = max(math.log(self._limits.divergence_above_best), self.FROM_BEST_ERRORS * error)
        references = [(median(self._first), from_start, "where the run began")]
        if self._best is not None:
            references.append((self._best, from_best, "the lowest it was"))
        shares = [(level - reference) / needed for reference, needed, _ in references]
        worst = max(range(len(shares)), key=shares.__getitem__)
        reference, _, words = references[worst]
        now, then = math.exp(level), math.exp(reference)
        if shares[worst] > 1 and now - then > self._limits.loss_least_nats:
            return Verdict(
                "bad",
                f"the median loss of the last {len(self._recent)} steps is {now:.4g} at step {step}, "
                f"{now / then:.2f} times {words} ({then:.4g}): the run unlearns",
                {"loss": now, "reference": then, "ratio": now / then},
            )
        return GOOD if shares[worst] < 0.6 else UNSURE


class PlateauDetector:
    """The loss has stopped falling, as far as its noise lets one see."""

    SIZES = (50, 100, 200, 400)
    """Losses that are looked at: as few as tell through their noise, at most the last."""
    EVERY = 10
    SMALL_LOSS = 0.05

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._losses: deque[float] = deque(maxlen=self.SIZES[-1])
        self._first: list[float] = []
        self._rate = 0.0
        self._peak_rate = 0.0
        self._count = 0

    def judge(self, now: Observation) -> Verdict | None:
        if (loss := _finite(now.loss)) is None:
            return None
        if now.learning_rate is not None:
            self._take_rate(now.learning_rate)
        self._losses.append(loss)
        if len(self._first) < self.EVERY:
            self._first.append(loss)
        self._count += 1
        return self._look(now.step) if self._count % self.EVERY == 0 else None

    def _take_rate(self, rate: float) -> None:
        if rate > self._rate * (1 + 1e-6):
            self._losses.clear()  # the warm-up: it has hardly begun to learn
        self._rate, self._peak_rate = rate, max(self._peak_rate, rate)

    def _look(self, step: int | None) -> Verdict | None:
        losses = list(self._losses)
        noise = step_noise(map(_log, losses[-100:]))
        limit = self._limits.plateau_improvement
        verdict: Verdict | None = None
        for size in self.SIZES:
            if len(losses) < size:
                return verdict
            half = size // 2
            before, after = median(losses[-size:-half]), median(losses[-half:])
            improvement = (before - after) / max(abs(before), SMALLEST_LOSS)
            error = 2 * MEDIAN_ERROR * noise / math.sqrt(size)
            verdict = UNSURE
            if improvement - error >= 2 * limit or improvement + 2 * error < -2 * limit:
                return GOOD  # it falls, or it rises: for that divergence has a rule of its own
            is_certain = improvement + 2 * error < 1.5 * limit or size == self.SIZES[-1]
            if abs(improvement) < limit and is_certain:
                return self._flat(after, improvement, size, step)
        return verdict

    def _flat(self, after: float, improvement: float, size: int, step: int | None) -> Verdict:
        start = median(self._first)
        has_learned = after < (1 - self._limits.plateau_learned) * start
        is_expected = has_learned or after < self.SMALL_LOSS or self._rate < 0.5 * self._peak_rate
        meaning = "the run has converged" if is_expected else "it has learned little and stands still"
        return Verdict(
            "bad",
            f"the loss changed by {-100 * improvement:+.1f} % over the last {size} steps, to "
            f"{after:.4g} at step {step}: {meaning}",
            {"loss": after, "improvement": improvement, "steps": size, "start": start},
            severity="info" if is_expected else "warning",
        )


class OverfittingDetector:
    """The evaluation loss rises while the training loss goes on falling."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._best: tuple[float, float, int | None] | None = None

    def judge(self, now: Observation) -> Verdict | None:
        evaluated, trained = _finite(now.eval_loss), _finite(now.train_loss)
        if evaluated is None or trained is None:
            return None
        if self._best is None or evaluated < self._best[0]:
            self._best = evaluated, trained, now.step
            return GOOD
        best, trained_then, step = self._best
        rise = max(self._limits.overfitting_rise * abs(best), 0.1 * self._limits.loss_least_nats)
        if evaluated > best + rise and trained < trained_then:
            return Verdict(
                "bad",
                f"the evaluation loss rose from {best:.4g} at step {step} to {evaluated:.4g} while the "
                f"training loss fell from {trained_then:.4g} to {trained:.4g}: it learns its data by heart",
                {"eval_loss": evaluated, "best_eval_loss": best, "best_step": step, "train_loss": trained},
            )
        return UNSURE


class CalibrationDetector:
    """The calibration error is large, or has risen well above the lowest of the run."""

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._lowest: float | None = None

    def judge(self, now: Observation) -> Verdict | None:
        if (error := _finite(now.ece)) is None:
            return None
        lowest = error if self._lowest is None else self._lowest
        self._lowest = min(error, lowest)
        limits = self._limits
        if limits.ece >= error > limits.ece_rise_least and error > (1 + limits.ece_rise) * lowest:
            return Verdict(
                "bad",
                f"calibration error rose from {lowest:.2f} to {error:.2f} within this run: the model gets "
                "surer than it is right",
                {"ece": error, "lowest": lowest, "limit": (1 + limits.ece_rise) * lowest},
            )
        return above(
            error,
            limits.ece,
            "calibration error {value:.2f} is above {limit:g}: the model's confidence says little about "
            "whether it is right",
            "ece",
            clear=limits.ece_clear,
        )


class CreepDetector:
    """The memory of the worker grows and grows.

    Medians of 20 readings each are compared; the first of them, in which a run allocates, is left out.
    """

    BLOCK, RISING = 20, 4

    def __init__(self, limits: Thresholds) -> None:
        self._limits = limits
        self._readings: list[int] = []
        self._skipped = False
        self._first: float | None = None
        self._medians: deque[float] = deque(maxlen=self.RISING)

    def judge(self, now: Observation) -> Verdict | None:
        if now.worker_rss_bytes is None:
            return None
        self._readings.append(now.worker_rss_bytes)
        if len(self._readings) < self.BLOCK:
            return None
        block = median(self._readings)
        self._readings.clear()
        if not self._skipped:
            self._skipped = True
            return None
        self._first = block if self._first is None else self._first
        self._medians.append(block)
        return self._compare(self._first, block)

    def _compare(self, first: float, last: float) -> Verdict:
        grown = last - first
        needed = max(self._limits.ram_creep_bytes, self._limits.ram_creep_share * first)
        is_rising = all(after > before for before, after in pairwise(self._medians))
        if grown >= needed and is_rising and len(self._medians) == self.RISING:
            return Verdict(
                "bad",
                f"the worker's memory grew from {first / 2**30:.2f} to {last / 2**30:.2f} GiB and still "
                "grows: the kernel will end it when there is no more",
                {"first_bytes": int(first), "last_bytes": int(last)},
            )
        return UNSURE if is_rising else GOOD


def finite_only(verdict: Verdict) -> Verdict:
    """Return the verdict without numbers that JSON cannot hold."""
    details = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in verdict.details.items()
    }
    return replace(verdict, details=details)
