"""The rules of the alerts: for each category what is bad, how grave that is and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monitoring.detectors import (
    CalibrationDetector,
    CreepDetector,
    DivergenceDetector,
    OverfittingDetector,
    PlateauDetector,
    SpikeDetector,
)
from monitoring.judgements import (
    above,
    below,
    judge_dead,
    judge_gap,
    judge_lost_skills,
    judge_low_rate,
    judge_missing,
    judge_nan,
    judge_served,
    judge_throughput,
    judge_variance,
)
from monitoring.observation import Observation, Severity, Thresholds, Verdict

Judge = Callable[[Observation], Verdict | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """One category of alerts."""

    category: str
    severity: Severity
    recommendation: str
    judge: Judge
    """None where the observation holds nothing to judge."""
    raise_after: int = 1
    """Bad verdicts in a row."""
    clear_after: int = 1
    """Good verdicts in a row."""


def build_rules(limits: Thresholds) -> list[Rule]:
    """Return all rules, with fresh memories, the gravest first."""
    return [
        *_loss_rules(limits),
        *_gradient_rules(limits),
        *_evaluation_rules(limits),
        *_machine_rules(limits),
    ]


def _loss_rules(limits: Thresholds) -> list[Rule]:
    return [
        Rule(
            "nan_loss",
            "critical",
            "Stop: the weights are about to be lost. The last whole checkpoint stands; resume from it with a "
            "lower train.learning_rate, check train.max_grad_norm, and look for damaged records.",
            judge_nan,
            clear_after=10,
        ),
        Rule(
            "divergence",
            "warning",
            "Stop and go on from the best checkpoint with a learning rate three to ten times lower, or a "
            "longer warm-up.",
            DivergenceDetector(limits).judge,
            raise_after=5,
            clear_after=20,
        ),
        Rule(
            "loss_spike",
            "warning",
            "Watch the next steps. If it comes back, look at the records of this step, lower the learning "
            "rate, or go back to the last checkpoint.",
            SpikeDetector(limits).judge,
            clear_after=3,
        ),
        Rule(
            "plateau",
            "warning",
            "Use the best checkpoint. To learn more, raise the learning rate or the rank, or add more varied "
            "data.",
            PlateauDetector(limits).judge,
            raise_after=3,
            clear_after=2,
        ),
        Rule(
            "loss_variance",
            "info",
            "Larger batches (train.gradient_accumulation_steps) give a steadier loss; lengths and sources of "
            "very different kinds make it restless.",
            lambda now: judge_variance(now, limits),
            raise_after=10,
            clear_after=10,
        ),
        Rule(
            "high_learning_rate",
            "warning",
            "Lower train.learning_rate; for adapters 1e-5 to 1e-3 is usual.",
            lambda now: above(
                now.learning_rate,
                limits.high_learning_rate,
                "learning rate {value:.3g} is above {limit:g}: training may become unstable",
                "learning_rate",
            ),
        ),
        Rule(
            "low_learning_rate",
            "info",
            "Nothing, if the run is near its end; else raise train.learning_rate or train.min_lr_ratio.",
            lambda now: judge_low_rate(now, limits),
        ),
    ]


def _gradient_rules(limits: Thresholds) -> list[Rule]:
    return [
        Rule(
            "exploding_gradients",
            "critical",
            "Lower train.learning_rate or train.max_grad_norm; look at the records of this step.",
            lambda now: above(
                now.largest_grad_norm,
                limits.exploding_grad_norm,
                "gradient norm {value:.3g} of a module is above {limit:g}",
                "largest_grad_norm",
                clear=0.5 * limits.exploding_grad_norm,
                layers=now.exploding_layers,
            ),
            clear_after=20,
        ),
        Rule(
            "vanishing_gradients",
            "warning",
            "Raise train.learning_rate or train.lora_alpha; nothing, if the loss is near zero already.",
            lambda now: below(
                now.smallest_grad_norm,
                limits.vanishing_grad_norm,
                "gradient norm {value:.3g} of a module is below {limit:g}: it hardly learns",
                "smallest_grad_norm",
                clear=10 * limits.vanishing_grad_norm,
                layers=now.vanishing_layers,
            ),
            raise_after=3,
            clear_after=3,
        ),
        Rule(
            "dead_layers",
            "warning",
            "Check train.lora_target_modules and that nothing froze the adapter; a module without gradients "
            "learns nothing.",
            judge_dead,
        ),
        Rule(
            "gradient_imbalance",
            "info",
            "Fewer kinds of target modules, or a smaller learning rate, make the modules learn more alike.",
            lambda now: above(
                now.gradient_imbalance,
                limits.gradient_imbalance,
                "the largest gradient norm of a module is {value:.0f} times the smallest",
                "gradient_imbalance",
                clear=0.5 * limits.gradient_imbalance,
            ),
            raise_after=3,
            clear_after=3,
        ),
    ]


def _evaluation_rules(limits: Thresholds) -> list[Rule]:
    return [
        Rule(
            "overfitting",
            "warning",
            "Use the best checkpoint and stop here; fewer epochs, more data or some dropout next time.",
            OverfittingDetector(limits).judge,
            raise_after=2,
        ),
        Rule(
            "val_gap",
            "warning",
            "Fewer epochs, more data, a lower rank or some dropout; check that the held-out records are of "
            "the same kind as the others.",
            lambda now: judge_gap(now, limits),
            raise_after=2,
        ),
        Rule(
            "poor_calibration",
            "warning",
            "Train on, or correct the confidence afterwards (temperature scaling); do not act on it alone.",
            CalibrationDetector(limits).judge,
        ),
        Rule(
            "regression",
            "warning",
            "Compare the two (trainbox compare) and look at the answers; trainbox rollback goes back.",
            judge_lost_skills,
        ),
        Rule(
            "missing_metric",
            "warning",
            "Look into the run's log: what makes these numbers has failed or never ran.",
            judge_missing,
            raise_after=3,
        ),
    ]


def _machine_rules(limits: Thresholds) -> list[Rule]:
    gib = 2**30
    return [
        Rule(
            "throughput_drop",
            "warning",
            "See what else uses the machine, its temperature and its disk; nvidia-smi and top show it.",
            lambda now: judge_throughput(now, limits),
            raise_after=5,
            clear_after=5,
        ),
        Rule(
            "stale_worker",
            "warning",
            "Wait: a hung worker is ended and resumed by itself. If this repeats, read the run's log.",
            lambda now: above(
                now.heartbeat_age_seconds,
                limits.heartbeat_age_seconds,
                "the worker has said nothing for {value:.0f} seconds",
                "heartbeat_age_seconds",
                clear=0.5 * limits.heartbeat_age_seconds,
            ),
        ),
        Rule(
            "not_served",
            "warning",
            "Free the port, or take another one (serving.monitor_port); it is tried again by itself, and "
            "training goes on meanwhile.",
            judge_served,
        ),
        Rule(
            "low_disk",
            "warning",
            "Make room, or let old versions go: trainbox deletes none that are in use. Jobs wait meanwhile.",
            lambda now: below(
                None if now.disk_free_bytes is None else now.disk_free_bytes / gib,
                limits.disk_free_bytes / gib,
                "{value:.1f} GiB are free on the disk, less than {limit:.1f}",
                "disk_free_gib",
                clear=1.2 * limits.disk_free_bytes / gib,
            ),
        ),
        Rule(
            "low_memory",
            "warning",
            "Close other programs, or make the batches smaller.",
            lambda now: above(
                now.ram_percent,
                limits.ram_percent,
                "{value:.0f} % of the memory is in use: the kernel may end a process",
                "ram_percent",
                clear=limits.ram_percent_clear,
            ),
            raise_after=3,
            clear_after=3,
        ),
        Rule(
            "ram_creep",
            "warning",
            "Pause and resume: the worker starts anew from an exact checkpoint. Then report what leaks.",
            CreepDetector(limits).judge,
        ),
        Rule(
            "thermal",
            "warning",
            "Improve the cooling or lower the power limit (nvidia-smi --power-limit).",
            lambda now: above(
                now.gpu_temperature,
                limits.gpu_temperature,
                "the GPU is at {value:.0f} °C, above {limit:g}: it will slow itself down",
                "gpu_temperature",
                clear=limits.gpu_temperature_clear,
            ),
            raise_after=3,
            clear_after=3,
        ),
    ]
