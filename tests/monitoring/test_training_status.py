"""The status document: merged, whole at every instant, and honest about its age."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

import durable
from config import Paths
from errors import IntegrityError
from monitoring.evaluation_windows import RECENT_EXAMPLES
from monitoring.events import (
    BestCheckpoint,
    CheckpointEvent,
    EvaluatedEvent,
    ExampleEvent,
    HeartbeatEvent,
    NoteEvent,
    OutcomeEvent,
    PhaseEvent,
    PlanEvent,
    PublishedEvent,
    StepEvent,
    now,
)
from monitoring.training_status import (
    StatusWriter,
    TrainingStatus,
    read_status,
    start_ticks,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(paths: Paths, clock: Clock) -> StatusWriter:
    made = StatusWriter(paths.status_file, 2.0, clock)
    made.write()
    return made


def step_event(step: int, total_steps: int = 100, **fields: float) -> StepEvent:
    values: dict[str, float] = {"loss": 1.0, "tokens": 100, "seconds": 0.5, **fields}
    return StepEvent(
        step=step,
        total_steps=total_steps,
        epoch=step / total_steps,
        learning_rate=1e-4,
        grad_norm=None,
        loss=values["loss"],
        tokens=int(values["tokens"]),
        seconds=values["seconds"],
    )


def example_event(step: int, matches: bool, answer: str = "x") -> ExampleEvent:
    return ExampleEvent(
        step=step,
        system_prompt=None,
        prompt="2+2?",
        golden_answer="4",
        model_answer=answer,
        answer_matches=matches,
        golden_tokens=3,
        model_tokens=len(answer),
    )


def on_disk(paths: Paths) -> dict[str, object]:
    document = json.loads(paths.status_file.read_bytes())
    assert isinstance(document, dict)
    return document


def test_a_change_of_state_is_written_at_once(paths: Paths, writer: StatusWriter) -> None:
    writer.update(state="paused", status="paused")
    assert on_disk(paths)["state"] == "paused"


@pytest.mark.config_key("monitoring.status_seconds")
def test_status_seconds_is_the_longest_time_between_two_writes(paths: Paths, clock: Clock) -> None:
    for seconds in (2.0, 5.0):
        writer = StatusWriter(paths.status_file, seconds, clock)
        writer.write()
        writer.update(loss=1.0)
        assert on_disk(paths)["loss"] is None
        clock.now += seconds - 0.1
        writer.beat()
        assert on_disk(paths)["loss"] is None
        clock.now += 0.1
        writer.beat()
        assert on_disk(paths)["loss"] == 1.0


def test_updates_are_merged(writer: StatusWriter) -> None:
    writer.observe(step_event(3, loss=0.7))
    writer.update(state="idle", status="completed")
    assert (writer.status.loss, writer.status.batch_step, writer.status.status) == (0.7, 3, "completed")


def test_what_is_not_finite_is_null_and_the_document_is_strict_json(
    paths: Paths, writer: StatusWriter
) -> None:
    writer.update(loss=math.nan, learning_rate=math.inf, state="training")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in the document")

    document = json.loads(paths.status_file.read_bytes(), parse_constant=refuse)
    assert (document["loss"], document["learning_rate"]) == (None, None)
    assert read_status(paths) is not None


def test_a_new_run_forgets_the_numbers_of_the_last(writer: StatusWriter) -> None:
    writer.observe(step_event(3))
    writer.update(error_type="oom")
    writer.begin_run(job_id="000002-0a0a0a0a", state="starting")
    status = writer.status
    assert (status.loss, status.batch_step, status.error_type, status.tokens_per_sec) == (None,) * 4
    assert status.job_id == "000002-0a0a0a0a"


def test_example_of_a_file_never_stands_under_the_name_of_the_next(writer: StatusWriter) -> None:
    writer.update(current_file="a.jsonl")
    writer.observe(example_event(3, matches=True))
    of_none = {name: getattr(TrainingStatus(), name) for name in OF_ANSWERS}
    assert all(getattr(writer.status, name) != value for name, value in of_none.items())
    writer.begin_run(current_file="b.jsonl")
    assert {name: getattr(writer.status, name) for name in OF_ANSWERS} == of_none


def test_alerts_of_a_run_end_when_the_next_begins_and_that_is_told(writer: StatusWriter) -> None:
    writer.observe(OutcomeEvent(outcome="failed", kind="nan", message="step 7", step=7))
    assert [alert.category for alert in writer.status.active_alerts] == ["nan_loss"]
    writer.begin_run(job_id="000002-0a0a0a0a")
    assert writer.status.active_alerts == ()
    assert [(alert.category, alert.kind) for alert in writer.take_alerts()] == [
        ("nan_loss", "raised"),
        ("nan_loss", "resolved"),
    ]


def test_a_plan_gives_totals_over_the_file_and_over_all_files(writer: StatusWriter) -> None:
    writer.continue_from(200)
    writer.observe(
        PlanEvent(records=8, epochs=1, steps_per_epoch=50, total_steps=50, tokens_per_epoch=9, start_step=9)
    )
    assert (writer.status.batch_step, writer.status.batch_total_steps) == (9, 50)
    assert (writer.status.current_step, writer.status.total_steps) == (209, 250)
    writer.observe(step_event(10, 50))
    assert (writer.status.batch_step, writer.status.current_step) == (10, 210)
    writer.begin_run()
    writer.observe(step_event(1, 50))
    assert writer.status.current_step == 1


def test_speed_and_time_left_come_from_the_steps_own_seconds_without_the_first(writer: StatusWriter) -> None:
    writer.observe(step_event(1, tokens=100, seconds=9.0))
    writer.observe(step_event(2, tokens=300, seconds=1.0))
    assert (writer.status.tokens_per_sec, writer.status.eta_seconds) == (300.0, 98.0)
    for step in range(3, 60):
        writer.observe(step_event(step, tokens=200, seconds=1.0))
    assert writer.status.tokens_per_sec == 200.0
    assert writer.status.tokens_per_sec_avg == pytest.approx((300 + 57 * 200) / 58)
    assert writer.status.total_tokens == 100 + 300 + 57 * 200


def test_phases_become_states(writer: StatusWriter) -> None:
    writer.observe(PhaseEvent(phase="validating", done=3, total=10, unit="MiB"))
    status = writer.status
    assert (status.state, status.phase_done, status.phase_total, status.phase_unit) == (
        *("validating", 3, 10),
        "MiB",
    )


def test_held_out_loss_and_its_gap_to_the_training_loss(writer: StatusWriter) -> None:
    writer.observe(step_event(1, loss=1.0))
    writer.observe(EvaluatedEvent(step=1, eval_loss=1.25, records=10, tokens=99))
    assert (writer.status.validation_loss, writer.status.val_train_gap) == (1.25, 0.25)


def test_the_best_checkpoint_is_the_last_one_called_best(writer: StatusWriter) -> None:
    best = BestCheckpoint(step=10, path="a", eval_loss=1.0, score=0.4)
    writer.observe(CheckpointEvent(step=10, path="a", eval_loss=1.0, best=best))
    writer.observe(CheckpointEvent(step=20, path="b", eval_loss=2.0, best=best))
    assert writer.status.best_checkpoint is not None
    assert writer.status.best_checkpoint.step == 10


def test_examples_are_shown_counted_and_never_twice(writer: StatusWriter) -> None:
    for step in range(7):
        writer.observe(example_event(step, matches=step % 2 == 0, answer="x" * step))
    writer.observe(example_event(6, matches=True, answer="x" * 6))
    status = writer.status
    assert len(status.recent_examples) == RECENT_EXAMPLES
    assert [example.step for example in status.recent_examples] == [2, 3, 4, 5, 6]
    assert (status.total_evals, status.total_correct, status.accuracy_percent) == (8, 5, 62.5)
    assert (status.current_model_output_length, status.max_model_output_length) == (6, 6)


def test_notes_and_verdicts_are_messages(writer: StatusWriter) -> None:
    writer.observe(NoteEvent(message="halved the micro-batch"))
    assert writer.status.message == "halved the micro-batch"
    writer.observe(
        PublishedEvent(version="v0002", decision="hold", reason="worse", before_loss=1, after_loss=2)
    )
    assert writer.status.message == "v0002: hold, worse"
    writer.observe(HeartbeatEvent(rss_bytes=7))
    assert writer.status.worker_rss_bytes == 7


def test_memory_of_a_worker_is_unknown_when_none_runs(writer: StatusWriter) -> None:
    def end_by_word() -> None:
        writer.observe(OutcomeEvent(outcome="completed"))

    def die() -> None:
        writer.worker_pid = None

    for ending in (end_by_word, die, writer.begin_run):
        writer.worker_pid = 4711
        writer.observe(HeartbeatEvent(rss_bytes=7))
        writer.worker_pid = 4711
        assert writer.status.worker_rss_bytes == 7
        ending()
        assert writer.status.worker_rss_bytes is None


def test_a_command_is_acknowledged_once_by_final_names(paths: Paths, writer: StatusWriter) -> None:
    writer.acknowledge(step=3)
    assert on_disk(paths)["control"] is None
    writer.receive("pause", "gaming", now())
    writer.acknowledge(step=7)
    writer.acknowledge(step=8, message="twice")
    control = on_disk(paths)["control"]
    assert isinstance(control, dict)
    assert (control["command"], control["reason"], control["step"]) == ("pause", "gaming", 7)
    assert control["received_at"] <= control["applied_at"]


def test_a_stop_or_skip_shows_only_where_something_runs(writer: StatusWriter) -> None:
    writer.receive("skip", None, now())
    assert writer.status.status == "idle"
    for command, status in (("skip", "skipping"), ("stop", "stopping")):
        writer.update(status="training")
        writer.receive(command, None, now())
        assert writer.status.status == status


OF_ANSWERS = (
    *("current_prompt", "golden_answer", "model_answer", "answer_matches", "recent_examples", "total_evals"),
    *("total_correct", "accuracy_percent", "accuracy_last_20", "accuracy_last_50", "accuracy_history"),
    *("accuracy_trend", "eval_samples", "pattern_heatmap", "think_tag_percent", "max_model_output_length"),
    *("current_golden_output_length", "current_model_output_length", "max_golden_output_length"),
)

GOLDEN_FIELDS = {
    *("schema_version", "state", "status", "heartbeat_at", "pid", "job_id", "eta_seconds", "control"),
    *("queue", "best_checkpoint", "version", "message", "timestamp", "current_step", "total_steps", "epoch"),
    *("loss", "learning_rate", "max_output_tokens", "context_window", "batch_step", "batch_total_steps"),
    *("batch_number", "batch_queue_size", "current_file", "current_system_prompt", "current_prompt"),
    *("golden_answer", "model_answer", "answer_matches", "recent_examples", "total_evals", "total_correct"),
    *("accuracy_percent", "tokens_per_sec", "tokens_per_sec_avg", "validation_loss", "val_train_gap"),
    *("max_golden_output_length", "current_golden_output_length", "max_model_output_length"),
    *("current_model_output_length", "error_message", "error_type"),
}


def test_the_fields_bear_their_final_names(paths: Paths, writer: StatusWriter) -> None:
    assert set(on_disk(paths)) >= GOLDEN_FIELDS


def test_a_full_disk_is_logged_once_and_survived(
    paths: Paths, writer: StatusWriter, caplog: pytest.LogCaptureFixture
) -> None:
    paths.status_file.unlink()
    paths.status_file.parent.rename(paths.base / "gone")
    with caplog.at_level(logging.WARNING):
        writer.update(state="paused")
        writer.update(state="idle")
    assert len(caplog.records) == 1
    (paths.base / "gone").rename(paths.status_file.parent)
    writer.update(state="paused")
    assert on_disk(paths)["state"] == "paused"


def test_a_reader_never_sees_half_a_document(paths: Paths, writer: StatusWriter) -> None:
    finished = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not finished.is_set():
            seen.append(len(json.loads(paths.status_file.read_bytes())))

    reader = threading.Thread(target=read)
    reader.start()
    for number in itertools.count():
        writer.update(message="x" * (number % 400), state="training" if number % 2 else "evaluating")
        if not reader.is_alive() or (number >= 500 and len(seen) > 10):
            break
    finished.set()
    reader.join()
    assert len(seen) > 10
    assert len(set(seen)) == 1


def test_no_status_means_no_daemon_ever(paths: Paths) -> None:
    assert read_status(paths) is None


def test_a_live_daemon_is_running_and_not_stale(paths: Paths, writer: StatusWriter) -> None:
    reading = read_status(paths)
    assert reading is not None
    assert (reading.is_running, reading.is_stale) == (True, False)
    assert reading.status == writer.status


def test_a_dead_daemon_is_stale_at_once(paths: Paths) -> None:
    code = (
        "import sys; from pathlib import Path; from monitoring.training_status import StatusWriter; "
        "StatusWriter(Path(sys.argv[1]), 2.0, state='training').write()"
    )
    subprocess.run([sys.executable, "-c", code, str(paths.status_file)], check=True)
    reading = read_status(paths)
    assert reading is not None
    assert (reading.is_running, reading.is_stale, reading.status.state) == (False, True, "training")


def test_another_process_under_the_same_pid_does_not_pass_for_the_daemon(
    paths: Paths, writer: StatusWriter
) -> None:
    writer.update(pid_start_ticks=1, state="training")
    reading = read_status(paths)
    assert reading is not None
    assert (reading.is_running, reading.is_stale) == (False, True)


def test_a_daemon_that_lives_but_says_nothing_is_stale(paths: Paths, writer: StatusWriter) -> None:
    document = writer.status.model_dump(mode="python")
    long_ago = {"heartbeat_monotonic_seconds": time.monotonic() - 300}
    durable.write_json(paths.status_file, document | long_ago)
    reading = read_status(paths)
    assert reading is not None
    assert (reading.is_running, reading.is_stale) == (True, True)


@pytest.mark.parametrize("jump", [timedelta(days=-3650), timedelta(days=7300)])
def test_a_jump_of_the_wall_clock_makes_no_daemon_stale(
    jump: timedelta, paths: Paths, writer: StatusWriter
) -> None:
    document = writer.status.model_dump(mode="python")
    durable.write_json(paths.status_file, document | {"heartbeat_at": now() + jump})
    reading = read_status(paths)
    assert reading is not None
    assert (reading.is_running, reading.is_stale) == (True, False)


def test_a_daemon_that_said_goodbye_is_neither_running_nor_stale(paths: Paths, writer: StatusWriter) -> None:
    writer.update(state="stopped", pid_start_ticks=1)
    reading = read_status(paths)
    assert reading is not None
    assert (reading.is_running, reading.is_stale) == (False, False)


def test_a_file_that_is_no_status_document_is_an_error(paths: Paths) -> None:
    durable.write_json(paths.status_file, {"state": "dancing"})
    with pytest.raises(IntegrityError, match="not a status document"):
        read_status(paths)


def test_start_ticks_name_a_process() -> None:
    assert start_ticks(os.getpid()) == TrainingStatus().pid_start_ticks
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert start_ticks(child.pid) is None
