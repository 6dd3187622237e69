"""When a run evaluates and saves, and what it logs."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerState

from training.callbacks import TrainerLog, evaluation_steps


@given(total=st.integers(1, 5000), eval_steps=st.integers(1, 2000))
def test_a_run_is_evaluated_often_enough_and_at_its_end(total: int, eval_steps: int) -> None:
    steps = sorted(evaluation_steps(total, eval_steps))
    assert steps[-1] == total
    assert len(steps) >= min(total, 4)
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert max(gaps) <= eval_steps
    assert all(1 <= step <= total for step in steps)


def test_the_configured_interval_holds_in_long_runs() -> None:
    assert sorted(evaluation_steps(1000, 100)) == list(range(100, 1001, 100))
    assert sorted(evaluation_steps(1050, 500)) == [262, 524, 786, 1048, 1050]
    assert sorted(evaluation_steps(3, 100)) == [1, 2, 3]


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def state_at(step: int) -> TrainerState:
    state = TrainerState()
    state.global_step, state.max_steps, state.epoch = step, 100, step / 50
    return state


def lines(path: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_the_log_tells_how_long_it_took_and_will_take(tmp_path: Path) -> None:
    clock = Clock()
    log = TrainerLog(tmp_path / "trainer_log.jsonl", clock)
    clock.now += 50
    log.write(state_at(25), {"loss": 1.5, "lr": 1e-4})
    assert lines(tmp_path / "trainer_log.jsonl") == [
        {
            "current_steps": 25,
            "total_steps": 100,
            "loss": 1.5,
            "lr": 1e-4,
            "epoch": 0.5,
            "percentage": 25.0,
            "elapsed_time": "0:00:50",
            "remaining_time": "0:02:30",
        }
    ]


def test_what_was_logged_after_the_resumed_step_is_forgotten(tmp_path: Path) -> None:
    clock = Clock()
    log = TrainerLog(tmp_path / "trainer_log.jsonl", clock)
    for step in range(1, 9):
        log.write(state_at(step), {"loss": float(step)})
    log.cut_back(5)
    clock.now += 10
    log.write(state_at(6), {"loss": 60.0})
    assert [line["loss"] for line in lines(tmp_path / "trainer_log.jsonl")] == [1, 2, 3, 4, 5, 60]
    assert lines(tmp_path / "trainer_log.jsonl")[-1]["remaining_time"] == "0:15:40"


def test_a_number_that_is_none_never_reaches_the_log(tmp_path: Path) -> None:
    log = TrainerLog(tmp_path / "trainer_log.jsonl", Clock())
    log.write(state_at(1), {"loss": float("nan")})
    assert lines(tmp_path / "trainer_log.jsonl")[0]["loss"] is None


def test_a_log_that_was_torn_by_a_crash_is_cut_at_the_tear(tmp_path: Path) -> None:
    path = tmp_path / "trainer_log.jsonl"
    log = TrainerLog(path, Clock())
    log.write(state_at(1), {"loss": 1.0})
    with open(path, "ab") as file:
        file.write(b'{"current_steps": 2, "lo\0\0\0')
    log.cut_back(1)
    assert [line["current_steps"] for line in lines(path)] == [1]


@pytest.mark.parametrize("step", [0, 3])
def test_a_log_that_is_not_there_needs_no_cutting(step: int, tmp_path: Path) -> None:
    TrainerLog(tmp_path / "trainer_log.jsonl", Clock()).cut_back(step)
    assert not (tmp_path / "trainer_log.jsonl").exists()
