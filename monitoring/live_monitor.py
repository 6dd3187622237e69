"""What is looked at while a run trains, seldom enough to cost next to nothing.

A collector sees the predictions, the raw gradients and the weights of a sampled step. What all of them cost
together is measured, and the samples are drawn apart until that is a small share of the training time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from config import MonitoringConfig
from monitoring.lora_monitor import LoRAMonitor

ENTROPY_TOKENS = 256
"""Predictions of a sampled step whose entropy is taken; a vocabulary has 50,000 of them each."""


class Collector(Protocol):
    """Sees one sampled step from its parts and tells of it at its end."""

    def see_logits(self, logits: torch.Tensor) -> None:
        """See predictions ``(N, vocabulary)`` of trained tokens, of the first micro-batch."""

    def see_gradients(self, step: int) -> None:
        """See the gradients of the whole step, before they are clipped."""

    def tell(self) -> dict[str, Any]:
        """Return the fields of the status that are known now."""


class EntropyCollector:
    """How unsure the model is of the next token, in nats."""

    def __init__(self) -> None:
        self._entropy: torch.Tensor | None = None

    @torch.no_grad()
    def see_logits(self, logits: torch.Tensor) -> None:
        """Take the mean entropy of the first predictions; waits for nothing."""
        log_probs = torch.log_softmax(logits[:ENTROPY_TOKENS].detach().float(), dim=-1)
        self._entropy = -(log_probs.exp() * log_probs).sum(-1).mean()

    def see_gradients(self, step: int) -> None:
        """Need none."""

    def tell(self) -> dict[str, Any]:
        """Return ``token_entropy``; None where it is not a finite number."""
        value = math.nan if self._entropy is None else float(self._entropy)
        return {"token_entropy": value if math.isfinite(value) else None}


class LoRACollector:
    """Which modules of the adapter learn."""

    def __init__(self, parameters: Iterable[tuple[str, torch.Tensor]]) -> None:
        # Which steps are sampled is decided here; the monitor takes all that it is shown.
        self._monitor = LoRAMonitor(parameters, interval=1)

    def see_logits(self, logits: torch.Tensor) -> None:
        """Need none."""

    def see_gradients(self, step: int) -> None:
        self._monitor.before_step(step)

    def tell(self) -> dict[str, Any]:
        """Return ``lora_stats`` and ``lora_summary``, or nothing where there is no adapter."""
        if not self._monitor.after_step():
            return {}
        summary = self._monitor.lora_summary
        return {
            "lora_stats": {name: stats.told() for name, stats in self._monitor.lora_stats.items()},
            "lora_summary": None if summary is None else summary.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Sample:
    """What the collectors tell of one step, and what they have cost so far."""

    step: int
    fields: dict[str, Any]
    overhead: float
    """Share of the training time that went into collectors."""


class LiveMonitor:
    """Decides which steps are sampled, and times the collectors.

    The next sample comes at least `interval` steps later, and late enough that all samples, with one more
    that costs as much as the last, are no more than `max_overhead` of the time trained until then.
    """

    def __init__(
        self,
        collectors: Sequence[Collector],
        *,
        interval: int,
        max_overhead: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._collectors = collectors
        self._interval = interval
        self._max_overhead = max_overhead
        self._clock = clock
        self._next_step: int | None = None
        self._is_sampling = False
        self._has_logits = False
        self._cost = self._last_cost = self._total_cost = self._trained = 0.0

    def begin_step(self, step: int) -> None:
        """Decide whether this step is sampled; the first one only warms up."""
        if self._next_step is None:
            self._next_step = step + 1
        self._is_sampling = step >= self._next_step and self._is_affordable()
        self._has_logits = False
        self._cost = 0.0

    def see_logits(self, logits: torch.Tensor) -> None:
        """Show the collectors the predictions of a sampled step's first micro-batch."""
        if self._is_sampling and not self._has_logits:
            self._has_logits = True
            self._timed(lambda collector: collector.see_logits(logits))

    def see_gradients(self, step: int) -> None:
        """Show the collectors the gradients of a sampled step, not clipped yet."""
        if self._is_sampling:
            self._timed(lambda collector: collector.see_gradients(step))

    def end_step(self, step: int, seconds: float) -> Sample | None:
        """Return what was seen of a sampled step that took `seconds`, looks included; else None."""
        self._trained += max(seconds - self._cost, 0.0)
        if not self._is_sampling:
            return None
        self._is_sampling = False
        fields: dict[str, Any] = {}
        self._timed(lambda collector: fields.update(collector.tell()))
        self._last_cost = self._cost
        self._total_cost += self._cost
        self._next_step = step + self._interval
        return Sample(step, fields, self._total_cost / self._trained if self._trained > 0 else 0.0)

    def _is_affordable(self) -> bool:
        """Tell whether the training so far pays for one more sample; the first is always taken."""
        return self._total_cost + self._last_cost <= self._max_overhead * self._trained

    def _timed(self, show: Callable[[Collector], None]) -> None:
        began = self._clock()
        for collector in self._collectors:
            show(collector)
        self._cost += self._clock() - began


def watch(parameters: Iterable[tuple[str, torch.Tensor]], config: MonitoringConfig) -> LiveMonitor | None:
    """Return what looks closely at a run with these named parameters, or None where that is switched off."""
    if not config.sample_steps:
        return None
    collectors = (EntropyCollector(), LoRACollector(parameters))
    return LiveMonitor(collectors, interval=config.sample_steps, max_overhead=config.max_overhead)
