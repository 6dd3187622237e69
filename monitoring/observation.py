"""What the alerts are told, and the limits by which they judge it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["critical", "warning", "info"]
Detail = float | int | str | list[str] | None


@dataclass(frozen=True, slots=True)
class Observation:
    """Numbers of one moment; what was not looked at is None and not judged."""

    step: int | None = None
    loss: float | None = None
    """Of this step; may be NaN or infinite."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    """Of all weights together; may be NaN or infinite."""
    streaming_ce: float | None = None
    loss_variance: float | None = None

    largest_grad_norm: float | None = None
    """Over the modules of the adapter, before clipping."""
    smallest_grad_norm: float | None = None
    """Of those above zero."""
    gradient_imbalance: float | None = None
    exploding_layers: tuple[str, ...] = ()
    vanishing_layers: tuple[str, ...] = ()
    dead_layers: tuple[str, ...] | None = None
    total_layers: int | None = None

    tokens_per_sec: float | None = None
    """Smoothed over some ten steps."""
    tokens_per_sec_baseline: float | None = None

    eval_loss: float | None = None
    """Given once, with the evaluation."""
    train_loss: float | None = None
    """Mean over what was trained since the evaluation before; given with `eval_loss`."""
    ece: float | None = None

    lost_skills: tuple[str, ...] | None = None
    """A sentence for each suite that the current version answers worse than one before it; empty for none."""

    monitor_trouble: str | None = None
    """Why the page and the training API are not served; empty when nothing hinders it."""

    missing_metrics: tuple[str, ...] | None = None
    """Names of numbers that should be there by now; empty when all are."""
    heartbeat_age_seconds: float | None = None
    disk_free_bytes: int | None = None
    worker_rss_bytes: int | None = None
    ram_percent: float | None = None
    gpu_temperature: float | None = None
    """Degrees Celsius."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where each alert begins, and where it ends if that is not the same."""

    loss_spike_ratio: float = 2.0
    """Loss as a multiple of the median before it."""
    loss_spike_noise: float = 6.0
    """And by so many standard deviations, as estimated from the median deviation."""
    loss_least_nats: float = 0.1
    """Changes of the loss below this are never alarming."""
    divergence_above_start: float = 1.3
    """Median loss of the last 20 steps as a multiple of that of the first 5."""
    divergence_above_best: float = 1.5
    """And of the lowest such median."""
    plateau_improvement: float = 0.01
    """Share by which the newer half of the losses must be lower than the older."""
    plateau_learned: float = 0.2
    """A run whose loss fell by this share before it became flat has converged: information, no warning."""
    exploding_grad_norm: float = 100.0
    vanishing_grad_norm: float = 1e-7
    gradient_imbalance: float = 1000.0
    high_learning_rate: float = 1e-2
    low_learning_rate: float = 1e-6
    low_learning_rate_step: int = 1000
    """The learning rate may be lower before this step."""
    loss_variance: float = 0.25
    """As a share of the squared loss."""
    val_gap: float = 0.3
    val_gap_clear: float = 0.25
    overfitting_rise: float = 0.03
    """Share by which the evaluation loss rises above its best while the training loss falls."""
    ece: float = 0.3
    ece_clear: float = 0.25
    ece_rise: float = 0.2
    """Share by which the calibration error rises above its lowest of the run."""
    ece_rise_least: float = 0.15
    """A calibration error below this is small, however it rose."""
    throughput_share: float = 0.6
    throughput_share_clear: float = 0.75
    heartbeat_age_seconds: float = 60.0
    disk_free_bytes: int = 10 * 2**30
    ram_percent: float = 85.0
    ram_percent_clear: float = 80.0
    ram_creep_share: float = 0.25
    ram_creep_bytes: int = 2**30
    gpu_temperature: float = 85.0
    gpu_temperature_clear: float = 80.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one rule thinks of one observation.

    Between `bad` and `good` lies `unsure`, in which an alert stays what it was.
    """

    state: Literal["bad", "unsure", "good"]
    message: str = ""
    """What was seen and what it means; of a bad verdict."""
    details: dict[str, Detail] = field(default_factory=dict)
    severity: Severity | None = None
    """Where it differs from that of the rule."""


GOOD = Verdict("good")
UNSURE = Verdict("unsure")
