"""Close looks at single steps: what they see, and that they stay cheap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from monitoring.live_monitor import EntropyCollector, LiveMonitor, LoRACollector, Sample


class SlowCollector:
    """Takes a fixed time at the end of every sampled step."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.samples = 0
        self._seconds = seconds

    def see_logits(self, logits: torch.Tensor) -> None:
        """Need none."""

    def see_gradients(self, step: int) -> None:
        """Need none."""

    def tell(self) -> dict[str, Any]:
        self.now += self._seconds
        self.samples += 1
        return {"told": self.samples}

    def clock(self) -> float:
        return self.now


def follow(live: LiveMonitor, steps: int, seconds: float = 1.0) -> list[Sample]:
    """Take `steps` steps of equal length and return the samples."""
    samples = []
    for step in range(1, steps + 1):
        live.begin_step(step)
        live.see_gradients(step)
        sample = live.end_step(step, seconds)
        if sample is not None:
            samples.append(sample)
    return samples


def test_the_first_step_warms_up_and_then_every_nth_is_sampled() -> None:
    cheap = SlowCollector(0.0)
    live = LiveMonitor([cheap], interval=10, max_overhead=0.01, clock=cheap.clock)
    samples = follow(live, 40)
    assert [sample.step for sample in samples] == [2, 12, 22, 32]
    assert [sample.fields for sample in samples] == [{"told": number} for number in (1, 2, 3, 4)]


def test_a_slow_collector_is_called_less_often_until_it_is_affordable() -> None:
    slow = SlowCollector(0.5)
    live = LiveMonitor([slow], interval=1, max_overhead=0.01, clock=slow.clock)
    samples = follow(live, 1000)
    assert [sample.step for sample in samples] == [2, *range(101, 1000, 50)]
    assert all(sample.overhead <= 0.01 for sample in samples[1:])
    assert samples[-1].overhead == pytest.approx(0.01, rel=0.01)


def test_the_overhead_is_the_share_of_the_training_time() -> None:
    slow = SlowCollector(0.1)
    live = LiveMonitor([slow], interval=5, max_overhead=1.0, clock=slow.clock)
    last = follow(live, 52)[-1]
    assert last.step == 52
    assert last.overhead == pytest.approx(11 * 0.1 / 52)


def test_entropy_is_that_of_the_predictions() -> None:
    collector = EntropyCollector()
    collector.see_logits(torch.zeros(3, 8))
    assert collector.tell()["token_entropy"] == pytest.approx(math.log(8))
    collector.see_logits(torch.tensor([[100.0, 0.0]]))
    assert collector.tell()["token_entropy"] == pytest.approx(0.0, abs=1e-6)
    collector.see_logits(torch.full((1, 2), math.nan))
    assert collector.tell()["token_entropy"] is None


def test_only_the_first_micro_batch_of_a_sampled_step_is_seen() -> None:
    entropy = EntropyCollector()
    live = LiveMonitor([entropy], interval=1, max_overhead=1.0)
    live.begin_step(1)
    live.see_logits(torch.zeros(1, 4))
    assert live.end_step(1, 1.0) is None
    live.begin_step(2)
    live.see_logits(torch.zeros(1, 4))
    live.see_logits(torch.zeros(1, 16))
    sample = live.end_step(2, 1.0)
    assert sample is not None
    assert sample.fields["token_entropy"] == pytest.approx(math.log(4))


def test_a_model_without_an_adapter_has_no_layers_to_tell_of() -> None:
    collector = LoRACollector([("weight", torch.nn.Parameter(torch.ones(2, 2)))])
    collector.see_gradients(1)
    assert collector.tell() == {}
