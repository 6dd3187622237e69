"""From events to fields and alerts."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.events import (
    AlertEvent,
    CheckpointEvent,
    EvaluatedEvent,
    ExampleEvent,
    FixedEvalEvent,
    OutcomeEvent,
    ReportEvent,
    SignalsEvent,
    StepEvent,
)
from monitoring.hardware import DiskReading, GpuReading, HardwareReading, MemoryReading
from monitoring.observation import Thresholds
from monitoring.run_signals import RunSignals


def step_event(step: int, loss: float = 1.0, seconds: float = 1.0) -> StepEvent:
    return StepEvent(
        *(), step=step, total_steps=100, epoch=step / 100, loss=loss, learning_rate=1e-4, grad_norm=1.0,
        tokens=200, seconds=seconds,
    )  # fmt: skip


def machine(free_gib: float = 100, temperature: int | None = None) -> HardwareReading:
    gpu = GpuReading(
        *(), gpu_name="a card", temperature=temperature, gpu_utilization=None, memory_utilization=None,
        memory_used_mb=None, memory_total_mb=None, power_draw_w=None, power_limit_w=None,
    )  # fmt: skip
    memory = MemoryReading(
        *(), total_gb=24, used_gb=4, available_gb=20, ram_percent=17, swap_total_gb=0, swap_used_gb=0,
        swap_percent=0, training_process=None, daemon_process=None, oom_risk="low",
    )  # fmt: skip
    disk = DiskReading(total_gb=500, free_gb=free_gib, free_bytes=int(free_gib * 2**30))
    return HardwareReading(memory=memory, disk=disk, gpu=None if temperature is None else gpu)


def categories(fields: dict[str, Any]) -> list[str]:
    return [alert.category for alert in fields["active_alerts"]]


def kinds(transitions: list[AlertEvent]) -> list[tuple[str, str]]:
    return [(transition.category, transition.kind) for transition in transitions]


def test_steps_give_speed_smoothed_loss_and_time_left() -> None:
    signals = RunSignals()
    fields: dict[str, Any] = {}
    for step in range(1, 31):
        fields = signals.observe(step_event(step), "a.jsonl")
    assert fields["tokens_per_sec"] == 200.0
    assert fields["tokens_per_sec_baseline"] == 200.0
    assert fields["throughput_trend"] == "stable"
    assert fields["streaming_ce"] == 1.0
    assert fields["loss_variance"] == 0.0
    assert fields["loss_trend"] == "stable"
    assert fields["eta_seconds"] == 70.0
    assert fields["eta_confidence"] == "high"
    assert fields["train_loss_history"][0] == (1, 1.0)
    assert len(fields["train_loss_history"]) == 30
    assert fields["active_alerts"] == ()
    assert fields["alert_summary"] == {"critical": 0, "warning": 0, "info": 0}


def test_an_evaluation_is_compared_with_what_was_trained_since_the_last() -> None:
    signals = RunSignals()
    signals.observe(step_event(1, loss=9.0), None)
    event = EvaluatedEvent(
        step=1, eval_loss=1.25, records=9, tokens=99, train_loss=1.0, epochs_without_improvement=0
    )
    fields = signals.observe(event, None)
    assert fields["val_train_gap"] == 0.25
    assert fields["epochs_without_improvement"] == 0


def test_dead_modules_are_told_of_and_the_alert_belongs_to_its_run() -> None:
    signals = RunSignals()
    names = [f"layer.{number}" for number in range(10)]
    summary = {
        "total_layers": 10, "active_layers": 1, "dead_layers": names[:9], "vanishing_layers": [],
        "exploding_layers": [], "broken_layers": [], "smallest_grad_norm": 0.1, "largest_grad_norm": 0.1,
        "gradient_imbalance": 1.0, "top_layers": [],
    }  # fmt: skip
    fields: dict[str, Any] = {}
    for step in range(1, 10):
        event = SignalsEvent(step=step, monitoring_overhead=0.004, token_entropy=2.0, lora_summary=summary)
        fields = signals.observe(event, None)
    assert categories(fields) == ["dead_layers"]
    assert fields["monitoring_overhead"] == 0.004
    assert fields["token_entropy"] == 2.0
    assert kinds(signals.take_transitions()) == [("dead_layers", "raised")]
    assert categories(signals.begin()) == []
    assert kinds(signals.take_transitions()) == [("dead_layers", "resolved")]
    assert categories(signals.observe(step_event(1), None)) == []


def test_a_run_that_ended_by_nan_leaves_a_critical_alert() -> None:
    signals = RunSignals()
    fields = signals.observe(OutcomeEvent(outcome="failed", kind="nan", message="step 7", step=7), None)
    assert [(alert.category, alert.severity) for alert in fields["active_alerts"]] == [
        ("nan_loss", "critical")
    ]


def test_held_out_loss_that_never_comes_is_missed() -> None:
    signals = RunSignals()
    signals.observe(ReportEvent(format="messages", accepted=9, refused=0, held_out=3, usable=True), None)
    fields: dict[str, Any] = {}
    for step in (1, 2, 3):
        event = CheckpointEvent(step=step, path="x", eval_loss=None, best=None)
        fields = signals.observe(event, None)
    assert categories(fields) == ["missing_metric"]


def test_a_full_disk_and_a_hot_card_outlast_the_run() -> None:
    signals = RunSignals(Thresholds(disk_free_bytes=10 * 2**30))
    for _ in range(3):
        fields = signals.look(machine(free_gib=5, temperature=95), None)
    assert sorted(categories(fields)) == ["low_disk", "thermal"]
    signals.begin()
    for _ in range(3):
        fields = signals.look(machine(free_gib=5, temperature=60), None)
    assert categories(fields) == ["low_disk"]
    assert sorted(kinds(signals.take_transitions())) == [
        *(("low_disk", "raised"), ("thermal", "raised"), ("thermal", "resolved")),
    ]


def test_a_silent_worker_is_stale_until_it_speaks_or_ends() -> None:
    moment = 0.0
    signals = RunSignals(clock=lambda: moment)
    signals.observe(step_event(1), None)
    moment = 100.0
    assert categories(signals.look(machine(), None)) == ["stale_worker"]
    signals.observe(OutcomeEvent(outcome="completed", version="v0001"), None)
    moment = 500.0
    assert categories(signals.look(machine(), None)) == []


def worker_of(gib: float, looks: int, signals: RunSignals) -> list[str]:
    """Return what alarms after so many looks at a worker of that size, which grows a little."""
    fields: dict[str, Any] = {}
    for look in range(looks):
        fields = signals.look(machine(), int(gib * 2**30) + 4096 * look)
    return categories(fields)


def test_memory_of_a_worker_is_not_measured_against_the_worker_of_the_run_before() -> None:
    signals = RunSignals()
    assert worker_of(1, 200, signals) == []
    signals.begin()
    assert worker_of(8, 400, signals) == []
    assert signals.take_transitions() == []


def test_a_worker_that_grows_and_grows_is_told_of_until_it_is_gone() -> None:
    signals = RunSignals()
    for look in range(400):
        fields = signals.look(machine(), 2**30 + look * 2**25)
    assert categories(fields) == ["ram_creep"]
    assert categories(signals.look(machine(), None)) == []
    assert kinds(signals.take_transitions()) == [("ram_creep", "raised"), ("ram_creep", "resolved")]


def test_answers_give_accuracy_windows_and_samples() -> None:
    signals = RunSignals()
    fields: dict[str, Any] = {}
    for step in range(1, 41):
        fields = signals.observe(
            ExampleEvent(
                *(), step=step, system_prompt=None, prompt="2+2?", golden_answer="4",
                model_answer="4" if step > 20 else "5", answer_matches=step > 20, golden_tokens=1,
                model_tokens=1,
            ),
            "a.jsonl",
        )  # fmt: skip
    assert fields["accuracy_last_20"] == 100.0
    assert fields["accuracy_percent"] == pytest.approx(50.0)
    assert fields["accuracy_trend"] == "improving"
    assert fields["accuracy_history"][-1] == (40, 100.0)
    assert fields["eval_samples"][-1].answer_matches is True


def test_answers_are_those_of_one_run() -> None:
    signals = RunSignals()
    right = ExampleEvent(
        *(), step=1, system_prompt=None, prompt="2+2?", golden_answer="4", model_answer="4",
        answer_matches=True, golden_tokens=1, model_tokens=1, pattern="math",
    )  # fmt: skip
    for _ in range(30):
        signals.observe(right, "a.jsonl")
    signals.begin()
    fields = signals.observe(right.model_copy(update={"answer_matches": False}), "b.jsonl")
    assert (fields["total_evals"], fields["accuracy_last_20"], fields["accuracy_last_50"]) == (1, 0.0, 0.0)
    assert fields["accuracy_trend"] == "insufficient_data"
    assert fields["accuracy_history"] == ((1, 0.0),)
    assert [one.current_file for one in fields["recent_examples"]] == ["b.jsonl"]
    assert fields["pattern_heatmap"].data["math"]["0-100"].seen == 1


def fixed_eval(step: int, ece: float, matches: tuple[bool | None, ...]) -> FixedEvalEvent:
    em = matches.count(True) / len(matches) if matches else None
    return FixedEvalEvent(step=step, em=em, ce=1.5, ece=ece, tokens=100, matches=matches)


def test_a_fixed_evaluation_fills_its_fields_and_poor_calibration_is_told_of() -> None:
    signals = RunSignals()
    first = signals.observe(fixed_eval(10, 0.31, (True, False)), "a.jsonl")
    assert (first["fixed_eval_em"], first["fixed_eval_ce"], first["fixed_eval_ece"]) == (0.5, 1.5, 0.31)
    assert first["fixed_eval_trend"] == "insufficient_data"
    assert [alert.category for alert in first["active_alerts"]] == ["poor_calibration"]
    second = signals.observe(fixed_eval(20, 0.2, (True, True)), "a.jsonl")
    assert (second["fixed_eval_trend"], second["active_alerts"]) == ("improving", ())
    without_answers = signals.observe(fixed_eval(30, 0.2, ()), "a.jsonl")
    assert "fixed_eval_em" not in without_answers
    assert without_answers["fixed_eval_trend"] == "improving"


def test_an_answer_that_did_not_come_whole_is_counted_apart() -> None:
    signals = RunSignals()
    whole = ExampleEvent(
        *(), step=1, system_prompt=None, prompt="2+2?", golden_answer="4", model_answer="4",
        answer_matches=True, golden_tokens=1, model_tokens=1, pattern="math",
    )  # fmt: skip
    signals.observe(whole, "a.jsonl")
    torn = whole.model_copy(update={"answer_matches": False, "error": "cut off after 60 s"})
    fields = signals.observe(torn, "a.jsonl")
    assert (fields["total_evals"], fields["eval_failures"], fields["accuracy_percent"]) == (1, 1, 100.0)
    again = signals.observe(whole, "a.jsonl")
    assert again["pattern_heatmap"].data["math"]["0-100"].seen == 2
