"""What a run's events say about it: speed, trends, accuracy and alerts, as fields of the status.

Fed with what the worker says and with readings of the machine; knows nothing of files or processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from monitoring.evaluation_windows import EvaluationWindows, RecentExample
from monitoring.events import (
    AlertEvent,
    CheckpointEvent,
    EvaluatedEvent,
    Event,
    ExampleEvent,
    FixedEvalEvent,
    OutcomeEvent,
    PlanEvent,
    ReportEvent,
    SignalsEvent,
    StepEvent,
)
from monitoring.fixed_eval_history import FixedEvalHistory
from monitoring.hardware import HardwareReading
from monitoring.observation import Observation, Thresholds
from monitoring.pattern_heatmap import PatternHeatmap
from monitoring.smart_alerts import GRAVITY, Alert, SmartAlerts, Transition
from monitoring.streaming_metrics import StreamingMetrics
from monitoring.thinned_history import ThinnedHistory
from monitoring.throughput_monitor import ThroughputMonitor


class RunSignals:
    """Follows one run after the other; what concerns the machine outlasts them."""

    def __init__(self, limits: Thresholds | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or Thresholds()
        self._clock = clock
        self._machine = SmartAlerts(self._limits)
        self._worker = SmartAlerts(self._limits)
        self._alerts = SmartAlerts(self._limits)
        self._transitions: list[Transition] = []
        self.begin()

    def begin(self) -> dict[str, Any]:
        """Forget the run before, whose alerts end with that; return those that are left."""
        self._end_worker()
        self._transitions += self._alerts.end()
        self._streaming = StreamingMetrics()
        self._throughput = ThroughputMonitor()
        self._losses = ThinnedHistory()
        self._fixed_eval = FixedEvalHistory()
        self._answers = EvaluationWindows()
        self._accuracies = ThinnedHistory()
        self._heatmap = PatternHeatmap()
        self._heard_at: float | None = None
        self._holds_out = False
        self._loss: float | None = None
        self._file: str | None = None
        return self._active()

    def observe(self, event: Event, file: str | None) -> dict[str, Any]:
        """Take what the worker said of `file`; return the fields that changed."""
        self._heard_at = self._clock()
        self._file = file
        match event:
            case ReportEvent():
                self._holds_out = event.held_out > 0
                return {}
            case StepEvent():
                return self._observe_step(event) | self._active()
            case SignalsEvent():
                return self._observe_signals(event) | self._active()
            case EvaluatedEvent():
                return self._observe_evaluation(event) | self._active()
            case ExampleEvent():
                return self._observe_answer(event)
            case FixedEvalEvent():
                return self._observe_fixed_eval(event) | self._active()
            case CheckpointEvent():
                missing = ("validation_loss",) if self._holds_out and event.eval_loss is None else ()
                self._judge(self._alerts, Observation(step=event.step, missing_metrics=missing))
                return self._active()
            case OutcomeEvent():
                return self._observe_outcome(event) | self._active()
            case PlanEvent():
                return {"trainable_parameters": event.trainable_parameters}
            case _:
                return {}

    def look(self, machine: HardwareReading, worker_rss_bytes: int | None) -> dict[str, Any]:
        """Take a reading of the machine, and of the worker's memory where one runs.

        Returns the fields of the machine and the alerts.
        """
        gpu, disk = machine.gpu, machine.disk
        silence = 0.0 if self._heard_at is None else self._clock() - self._heard_at
        seen = Observation(
            heartbeat_age_seconds=silence,
            disk_free_bytes=None if disk is None else disk.free_bytes,
            ram_percent=machine.memory.ram_percent,
            gpu_temperature=None if gpu is None else gpu.temperature,
        )
        self._judge(self._machine, seen)
        if worker_rss_bytes is None:
            self._end_worker()
        else:
            self._judge(self._worker, Observation(worker_rss_bytes=worker_rss_bytes))
        return {
            "memory": machine.memory.model_dump(),
            "disk": None if disk is None else disk.model_dump(),
            "gpu": None if gpu is None else gpu.model_dump(),
        } | self._active()

    def look_at_suites(self, lost_skills: tuple[str, ...]) -> dict[str, Any]:
        """Take what suites say of the current version; return the alerts."""
        self._judge(self._machine, Observation(lost_skills=lost_skills))
        return self._active()

    def look_at_monitor(self, trouble: str) -> dict[str, Any]:
        """Take why the page is not served, empty when it is; return the alerts."""
        self._judge(self._machine, Observation(monitor_trouble=trouble))
        return self._active()

    def take_transitions(self) -> list[AlertEvent]:
        """Return the alerts that began or ended since the last call."""
        taken, self._transitions = self._transitions, []
        return [
            AlertEvent(
                kind=transition.kind,
                at=transition.at,
                **transition.alert.model_dump(exclude={"timestamp"}),
            )
            for transition in taken
        ]

    def _observe_step(self, event: StepEvent) -> dict[str, Any]:
        self._loss = event.loss
        self._streaming.observe(event.loss)
        self._losses.add(event.step, event.loss)
        self._throughput.observe_step(event.tokens, event.seconds)
        losses, speed = self._streaming.snapshot(), self._throughput.snapshot()
        eta = self._throughput.eta(event.step, event.total_steps)
        self._judge(
            self._alerts,
            Observation(
                step=event.step,
                loss=event.loss,
                learning_rate=event.learning_rate,
                grad_norm=event.grad_norm,
                streaming_ce=losses.streaming_ce,
                loss_variance=losses.loss_variance,
                tokens_per_sec=speed.tokens_per_sec_smoothed,
                tokens_per_sec_baseline=speed.tokens_per_sec_baseline,
            ),
        )
        return {
            "train_loss_history": self._losses.points(),
            "streaming_ce": losses.streaming_ce,
            "loss_variance": losses.loss_variance,
            "loss_trend": losses.loss_trend,
            "tokens_per_sec": speed.tokens_per_sec,
            "tokens_per_sec_avg": speed.tokens_per_sec_avg,
            "tokens_per_sec_baseline": speed.tokens_per_sec_baseline,
            "throughput_trend": speed.throughput_trend,
            "total_tokens": speed.total_tokens,
            "eta_seconds": None if eta is None else eta.seconds,
            "eta_confidence": None if eta is None else eta.confidence,
        }

    def _observe_signals(self, event: SignalsEvent) -> dict[str, Any]:
        summary = event.lora_summary
        if summary is not None:
            self._judge(self._alerts, _of_adapter(event.step, summary))
        fields = {
            "token_entropy": event.token_entropy,
            "lora_stats": event.lora_stats,
            "lora_summary": summary,
            "monitoring_overhead": event.monitoring_overhead,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def _observe_evaluation(self, event: EvaluatedEvent) -> dict[str, Any]:
        if event.seconds is not None:
            self._throughput.observe_other("evaluation", event.seconds)
        train_loss = self._loss if event.train_loss is None else event.train_loss
        self._judge(
            self._alerts,
            Observation(
                step=event.step, eval_loss=event.eval_loss, train_loss=train_loss, missing_metrics=()
            ),
        )
        return {
            "validation_loss": event.eval_loss,
            "val_train_gap": None if train_loss is None else event.eval_loss - train_loss,
            "epochs_without_improvement": event.epochs_without_improvement,
        }

    def _observe_answer(self, event: ExampleEvent) -> dict[str, Any]:
        if event.error is not None:
            self._answers.fail()
            return asdict(self._answers.snapshot())
        self._answers.observe(
            RecentExample(
                step=event.step,
                current_file=self._file,
                system_prompt=event.system_prompt,
                prompt=event.prompt,
                golden=event.golden_answer,
                model_output=event.model_answer,
                matches=event.answer_matches,
                loss=event.loss,
            )
        )
        if event.pattern is not None:
            self._heatmap.observe(event.pattern, event.golden_tokens, event.answer_matches)
        answers = self._answers.snapshot()
        if answers.accuracy_last_20 is not None:
            self._accuracies.add(event.step, answers.accuracy_last_20)
        return {
            **asdict(answers),
            "accuracy_history": self._accuracies.points(),
            "pattern_heatmap": self._heatmap.table(),
        }

    def _observe_fixed_eval(self, event: FixedEvalEvent) -> dict[str, Any]:
        self._fixed_eval.observe(event.matches)
        self._judge(self._alerts, Observation(step=event.step, ece=event.ece))
        fields = {
            "fixed_eval_em": event.em,
            "fixed_eval_ce": event.ce,
            "fixed_eval_ece": event.ece,
            "fixed_eval_trend": self._fixed_eval.trend(),
        }
        # Where there was no time for answers, what is known of the evaluation before still stands.
        return {name: value for name, value in fields.items() if value is not None}

    def _observe_outcome(self, event: OutcomeEvent) -> dict[str, Any]:
        self._heard_at = None
        if event.outcome == "failed" and event.kind == "nan":
            self._judge(self._alerts, Observation(step=event.step, loss=float("nan")))
        return {}

    def _end_worker(self) -> None:
        """Forget the process that ended: the next one is measured against itself alone."""
        self._transitions += self._worker.end()

    def _judge(self, alerts: SmartAlerts, seen: Observation) -> None:
        self._transitions += alerts.observe(seen)

    def _active(self) -> dict[str, Any]:
        """Return the alerts of the run, of its worker and of the machine, the gravest first."""
        alerts: list[Alert] = [
            alert for source in (self._alerts, self._worker, self._machine) for alert in source.active()
        ]
        alerts.sort(key=lambda alert: GRAVITY.index(alert.severity))
        counts = {grade: sum(alert.severity == grade for alert in alerts) for grade in GRAVITY}
        return {"active_alerts": tuple(alerts), "alert_summary": counts}


def _of_adapter(step: int, summary: dict[str, Any]) -> Observation:
    return Observation(
        step=step,
        largest_grad_norm=summary["largest_grad_norm"],
        smallest_grad_norm=summary["smallest_grad_norm"],
        gradient_imbalance=summary["gradient_imbalance"],
        exploding_layers=tuple(summary["exploding_layers"]),
        vanishing_layers=tuple(summary["vanishing_layers"]),
        dead_layers=tuple(summary["dead_layers"]),
        total_layers=summary["total_layers"],
    )
