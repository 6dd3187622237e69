"""TensorBoard and its like are told what the run's own log says, and a missing one is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import daemon
from config import Paths
from errors import ConfigError
from tests.exactness import learned
from training.reporting import introduce_run, require_reporters

SETTINGS = ("train.per_device_train_batch_size=2", "train.eval_steps=3", "train.lora_dropout=0.1")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what a run told its libraries."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {point.step: point.value for point in events.Scalars(tag)}


@pytest.mark.config_key("train.report_to")
def test_tensorboard_gets_the_logged_losses_and_changes_no_byte_of_what_is_learned(
    workshop: Any, make_chats: Callable[..., Any]
) -> None:
    reported, silent = (
        workshop.job(make_chats(24), *SETTINGS, f"train.report_to={who}") for who in ("[tensorboard]", "[]")
    )
    for job in (reported, silent):
        outcome, _ = workshop.carry_out(job)
        assert outcome.outcome == "completed", outcome
    events = EventAccumulator(str(workshop.folder(reported).tensorboard))
    events.Reload()
    lines = [orjson.loads(line) for line in workshop.folder(reported).trainer_log.read_bytes().splitlines()]
    for tag, key in (("train/loss", "loss"), ("train/learning_rate", "lr"), ("eval/loss", "eval_loss")):
        logged = {line["current_steps"]: line[key] for line in lines if key in line}
        assert len(logged) > 3
        assert scalars(events, tag) == pytest.approx(logged, rel=1e-6)
    (arguments,) = events.Tensors("args/text_summary")
    assert f'"run_name": "{reported}"' in arguments.tensor_proto.string_val[0].decode()
    assert not workshop.folder(silent).tensorboard.exists()
    assert learned(workshop.paths, "v0001") == learned(workshop.paths, "v0002")


def test_a_missing_library_stops_the_daemon_before_it_takes_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.report_to: found no library mlflow.*pip install mlflow"):
        daemon.run(tmp_path, overrides=["train.report_to=[tensorboard, mlflow]"], until_idle=True)
    assert list(tmp_path.iterdir()) == []


def test_a_library_removed_later_fails_the_job_with_the_key(
    workshop: Any, make_chats: Callable[..., Any]
) -> None:
    outcome, _ = workshop.carry_out(workshop.job(make_chats(4), "train.report_to=[trackio]"))
    assert (outcome.outcome, outcome.kind) == ("failed", "config")
    assert "train.report_to" in outcome.message and "pip install trackio" in outcome.message


def test_nobody_to_tell_needs_no_library() -> None:
    require_reporters([])


def test_each_library_learns_the_runs_name_and_place_and_a_persons_settings_stand(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    run = paths.run("000001-3f9c2a10")
    os.environ["WANDB_PROJECT"] = "mine"
    introduce_run(paths, run, ["wandb"], is_offline=True)
    assert os.environ["WANDB_PROJECT"] == "mine"
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["WANDB_DIR"] == str(run.folder)
    assert os.environ["WANDB_RUN_ID"] == "000001-3f9c2a10"
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    introduce_run(paths, run, ["trackio", "mlflow"], is_offline=False)
    assert os.environ["TRACKIO_DIR"] == str(tmp_path / "logs" / "trackio")
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/logs/mlflow.db"
