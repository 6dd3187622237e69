"""What a real daemon and a real worker leave for those who look on: the status, the events, the flags.

One base folder lives through a healthy file and then one whose learning rate is a hundred times too high; all
tests here read what was seen meanwhile.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from config import Paths
from tests.waiting import PATIENCE_SECONDS
from training.jobs import JobStore

ROOT = Path(__file__).parent.parent
SETTINGS = (
    *("model.precision=float32", "inbox.settle_seconds=0.2", "inbox.poll_seconds=0.1"),
    *("data.held_out_fraction=0.2", "train.threads=1", "train.per_device_train_batch_size=2"),
    *("train.min_lr_ratio=0", "evaluation.max_share=0.5", "monitoring.sample_steps=5"),
    *("monitoring.max_overhead=1", "monitoring.status_seconds=0.05"),
    # What is watched here is the run; whether it is promoted is tested elsewhere.
    *("promotion.policy=always", "evaluation.suites=[]"),
)
OF_THE_MACHINE = {"throughput_drop", "stale_worker", "low_disk", "low_memory", "ram_creep", "thermal"}
"""Alerts that tests at work beside this one may well raise."""
OF_THE_MODEL = {"poor_calibration"}
"""The head of so small a model is never sure of anything, right as it may be."""
HEALTHY, DIVERGING = "healthy.jsonl", "diverging.jsonl"
LEARNING = {
    HEALTHY: ("train.learning_rate=3e-3",),
    # A hundred times as much, reached slowly: what it does shows against how the run began.
    DIVERGING: ("train.learning_rate=0.3", "train.warmup_ratio=0.5"),
}

# What people and scripts have long read.
FIELDS = [
    *("status", "current_step", "total_steps", "epoch", "loss", "learning_rate", "timestamp"),
    *("max_output_tokens", "context_window", "batch_step", "batch_total_steps", "batch_number"),
    *("batch_queue_size", "current_file", "current_system_prompt", "current_prompt", "golden_answer"),
    *("model_answer", "answer_matches", "recent_examples", "eval_samples", "total_evals", "total_correct"),
    *("accuracy_percent", "accuracy_last_20", "accuracy_last_50", "accuracy_trend", "train_loss_history"),
    *("accuracy_history", "lora_stats", "lora_summary", "streaming_ce", "loss_variance", "token_entropy"),
    *("loss_trend", "active_alerts", "alert_summary", "tokens_per_sec", "tokens_per_sec_avg"),
    *("tokens_per_sec_baseline", "throughput_trend", "validation_loss", "val_train_gap", "think_tag_count"),
    *("think_tag_percent", "max_golden_output_length", "current_golden_output_length"),
    *("max_model_output_length", "current_model_output_length", "error_message", "error_type"),
    *("fixed_eval_em", "fixed_eval_ce", "fixed_eval_ece", "fixed_eval_trend", "pattern_heatmap"),
]
UNKNOWN_HERE = {"current_system_prompt", "error_message", "error_type"}
"""Null in a run that ended well and whose conversations have no system prompt."""


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def strict(text: bytes) -> Any:
    return json.loads(text, parse_constant=refuse)


@dataclass
class Life:
    """What was to be seen of one base folder."""

    paths: Paths
    seen: dict[str, list[Any]] = field(default_factory=dict)
    """Every status document that was met while a file trained, in order."""
    last: dict[str, bytes] = field(default_factory=dict)
    """The one that a daemon left behind."""

    def train(self, name: str, records: Sequence[dict[str, Any]], model: Path) -> None:
        (self.paths.inbox / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        settings = [*SETTINGS, f"model.base={model}", *LEARNING[name]]
        command = [sys.executable, str(ROOT / "daemon.py"), "--base", str(self.paths.base), "--until-idle"]
        command += [word for setting in settings for word in ("--set", setting)]
        log = self.paths.base / "output"
        with log.open("wb") as output:
            daemon = subprocess.Popen(command, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
        seen = self.seen.setdefault(name, [])
        try:
            while daemon.poll() is None:
                if self.paths.status_file.exists():
                    document = strict(self.paths.status_file.read_bytes())
                    if not seen or document["timestamp"] != seen[-1]["timestamp"]:
                        seen.append(document)
                time.sleep(0.02)  # a reader that looks on, as often as the daemon writes
        finally:
            daemon.kill()
        assert daemon.wait() == 0, log.read_text()
        self.last[name] = self.paths.status_file.read_bytes()

    def events(self, name: str, kind: str) -> list[Any]:
        (job,) = [job for job in JobStore(self.paths).all() if job.name == name]
        lines = self.paths.run(job.job_id).events.read_bytes().splitlines()
        return [event for event in map(strict, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Life:
    from tests.conftest import chats

    paths = Paths(tmp_path_factory.mktemp("life") / "base")
    paths.create()
    life = Life(paths)
    for number, name in enumerate((HEALTHY, DIVERGING)):
        life.train(name, chats(150, seed=number), tiny_model)
    return life


@pytest.fixture
def jq(life: Life) -> Callable[..., str]:
    """Run jq as the documents of old do: in the base folder, on the status of the run that ended well."""
    if shutil.which("jq") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("jq is not installed; `make test-tools` installs it")
        pytest.skip("jq is not installed")
    status = life.paths.base / "healthy_status.json"
    status.write_bytes(life.last[HEALTHY])

    def run(*arguments: str) -> str:
        done = subprocess.run(
            ["jq", *arguments, str(status)],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_the_summary_script_shows_the_numbers_of_the_run(life: Life, jq: Callable[..., str]) -> None:
    steps, examples = life.events(HEALTHY, "step"), life.events(HEALTHY, "example")
    assert int(jq(".current_step")) == steps[-1]["step"]
    assert float(jq(".loss")) == pytest.approx(steps[-1]["loss"])
    assert int(jq(".total_evals")) == len(examples)
    assert jq("-r", ".current_file") == HEALTHY
    # The same answer of the same step is shown once.
    different = {(example["step"], example["model_answer"]): example for example in examples}
    recent = [example["answer_matches"] for example in list(different.values())[-5:]]
    assert int(jq(".recent_examples | map(select(.matches)) | length")) == sum(recent)
    assert int(jq(".recent_examples | length")) == len(recent) > 0


def test_the_accuracy_script_counts_the_samples(life: Life, jq: Callable[..., str]) -> None:
    # As it was once written, without the first binding, jq refuses it whatever the document holds.
    percent = jq(
        """
        . as $status | .eval_samples |
        map(select(.answer_matches == true)) |
        length as $correct |
        ($correct / ($status.eval_samples | length) * 100)
        """
    )
    # The newest samples are kept, as many as the longer window counts.
    examples = life.events(HEALTHY, "example")[-50:]
    right = sum(example["answer_matches"] for example in examples)
    assert float(percent) == pytest.approx(100 * right / len(examples))
    assert float(jq(".accuracy_last_50")) == pytest.approx(float(percent))


def test_the_watch_lines_show_live_numbers(life: Life, jq: Callable[..., str]) -> None:
    shown = strict(jq("{streaming_ce, tokens_per_sec, alerts: (.active_alerts | length)}").encode())
    assert shown["streaming_ce"] > 0 and shown["tokens_per_sec"] > 0
    longer = strict(
        jq(
            """{
              step: .current_step,
              loss: .loss,
              streaming_ce: .streaming_ce,
              tokens_sec: .tokens_per_sec,
              alerts: (.active_alerts | length),
              lora_active: .lora_summary.active_layers
            }"""
        ).encode()
    )
    assert longer == {
        "step": life.events(HEALTHY, "step")[-1]["step"],
        "loss": pytest.approx(life.events(HEALTHY, "step")[-1]["loss"]),
        "streaming_ce": shown["streaming_ce"],
        "tokens_sec": shown["tokens_per_sec"],
        "alerts": len(strict(life.last[HEALTHY])["active_alerts"]),
        "lora_active": 14,
    }
    assert set(FIELDS) <= set(strict(jq("keys").encode()))


def test_every_field_is_there_by_name_and_has_a_value(life: Life) -> None:
    status = strict(life.last[HEALTHY])
    assert [name for name in FIELDS if name not in status] == []
    assert {name for name in FIELDS if status[name] is None} == UNKNOWN_HERE
    assert {"critical", "warning", "info"} == set(status["alert_summary"])
    assert len(status["train_loss_history"]) > 50
    example = status["recent_examples"][-1]
    assert set(example) >= {"step", "current_file", "prompt", "golden", "model_output", "matches", "loss"}


def test_the_fixed_evaluation_is_that_of_the_last_evaluation(life: Life) -> None:
    status, fixed = strict(life.last[HEALTHY]), life.events(HEALTHY, "fixed_eval")
    evaluated = life.events(HEALTHY, "evaluated")
    assert [one["step"] for one in fixed] == [one["step"] for one in evaluated]
    assert fixed[-1]["ce"] == status["fixed_eval_ce"] == pytest.approx(evaluated[-1]["eval_loss"])
    assert fixed[-1]["ece"] == status["fixed_eval_ece"]
    assert fixed[-1]["em"] == status["fixed_eval_em"]
    assert status["fixed_eval_trend"] in ("improving", "stable", "degrading", "insufficient_data")
    raised = {event["category"] for event in life.events(HEALTHY, "alert") if event["kind"] == "raised"}
    assert ("poor_calibration" in raised) is any(one["ece"] > 0.3 for one in fixed)


def test_the_heatmap_counts_each_answer_once(life: Life) -> None:
    heatmap, examples = strict(life.last[HEALTHY])["pattern_heatmap"], life.events(HEALTHY, "example")
    cells = [heatmap["data"][row][col] for row in heatmap["rows"] for col in heatmap["cols"]]
    assert sum(cell["seen"] for cell in cells) == len(examples)
    right = sum(cell["seen"] * cell["em"] for cell in cells if cell["seen"])
    assert right == pytest.approx(sum(example["answer_matches"] for example in examples))
    assert {cell["em"] for cell in cells if not cell["seen"]} == {None}


def test_a_run_that_has_ended_keeps_its_last_values(life: Life) -> None:
    status, training = strict(life.last[HEALTHY]), life.seen[HEALTHY]
    assert (status["status"], status["state"]) == ("completed", "stopped")
    last = next(one for one in reversed(training) if one["state"] == "training")
    assert last["status"] == "training"
    for name in ("lora_summary", "max_output_tokens", "current_file", "job_id"):
        assert status[name] == last[name]
    assert status["batch_step"] == status["batch_total_steps"] == life.events(HEALTHY, "step")[-1]["step"]


def test_steps_go_on_counting_over_files(life: Life) -> None:
    status = strict(life.last[DIVERGING])
    steps = sum(len(life.events(name, "step")) for name in (HEALTHY, DIVERGING))
    is_continued = life.events(DIVERGING, "plan")[0]["parent"] == "v0001"
    assert is_continued
    assert status["current_step"] == status["total_steps"] == steps


def test_the_events_hold_what_a_chart_needs(life: Life) -> None:
    steps = life.events(HEALTHY, "step")
    assert [event["step"] for event in steps] == list(range(1, len(steps) + 1))
    for event in steps:
        numbers = [event[name] for name in ("loss", "learning_rate", "grad_norm", "tokens", "seconds")]
        assert all(math.isfinite(number) for number in numbers) and event["at"]
    evaluated = life.events(HEALTHY, "evaluated")
    assert len(evaluated) >= 4
    assert all(event["eval_loss"] > 0 and event["score"] is not None for event in evaluated)
    signals = life.events(HEALTHY, "signals")
    assert all(event["token_entropy"] > 0 and len(event["lora_stats"]) == 14 for event in signals)
    assert all(event["loss"] > 0 for event in life.events(HEALTHY, "example"))


def test_a_healthy_run_alarms_nobody(life: Life) -> None:
    alarms = [event for event in life.events(HEALTHY, "alert") if event["severity"] != "info"]
    assert [event for event in alarms if event["category"] not in OF_THE_MACHINE | OF_THE_MODEL] == []


def test_a_run_that_diverges_raises_alerts_that_go_again(life: Life) -> None:
    events = life.events(DIVERGING, "alert")
    raised = [event["category"] for event in events if event["kind"] == "raised"]
    assert {"high_learning_rate", "divergence"} <= set(raised)
    (warning,) = [event for event in events if (event["category"], event["kind"]) == ("divergence", "raised")]
    assert warning["severity"] == "warning" and warning["recommendation"]
    assert warning["details"]["ratio"] > 1.3
    shown = [{alert["category"] for alert in document["active_alerts"]} for document in life.seen[DIVERGING]]
    assert any("divergence" in categories for categories in shown)
    # The learning rate ends at zero, so that what was said of it is taken back.
    first = next(at for at, categories in enumerate(shown) if "high_learning_rate" in categories)
    assert any("high_learning_rate" not in categories for categories in shown[first:])
    assert "high_learning_rate" in [event["category"] for event in events if event["kind"] == "resolved"]


def test_wrong_answers_are_flagged_once_an_example(life: Life) -> None:
    flagged = strict(life.paths.flagged_examples.read_bytes())["examples"]
    wrong = {
        (example["prompt"], example["golden_answer"])
        for name in (HEALTHY, DIVERGING)
        for example in life.events(name, "example")
        if not example["answer_matches"] or example["loss"] > 3.0
    }
    assert wrong
    assert sorted((one["prompt"], one["golden_answer"]) for one in flagged) == sorted(wrong)
    assert {one["current_file"] for one in flagged} <= {HEALTHY, DIVERGING}
