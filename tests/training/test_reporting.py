"""TensorBoard and its like are told what the run's own log says, and a missing one is named."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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
from tests.waiting import PATIENCE_SECONDS
from training.reporting import introduce_run, require_reporters

SETTINGS = ("train.per_device_train_batch_size=2", "train.eval_steps=3", "train.lora_dropout=0.1")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what a run told its libraries."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def scalars(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {point.step: point.value for point in events.Scalars(tag)}


def a_missing_one() -> str:
    missing = [name for name in ("trackio", "mlflow", "wandb") if importlib.util.find_spec(name) is None]
    if not missing:
        pytest.skip("every library is installed")
    return missing[0]


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


# What each library's own reader says of a store, as {step: loss}.
TRACKIO = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage
lines = SQLiteStorage.get_logs("trainbox", sys.argv[1])
print(json.dumps({line["train/global_step"]: line["train/loss"] for line in lines if "train/loss" in line}))
"""
MLFLOW = """
import json, os, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
(run,) = client.search_runs([client.get_experiment_by_name("trainbox").experiment_id])
assert (run.info.run_name, run.info.status) == (sys.argv[1], "FINISHED"), run
print(json.dumps({point.step: point.value for point in client.get_metric_history(run.info.run_id, "loss")}))
"""
WANDB = """
import glob, json, os, subprocess, sys
(run,) = glob.glob(os.environ["WANDB_DIR"] + "/wandb/offline-run-*/run-" + sys.argv[1] + ".wandb")
command = [sys.executable, "-m", "wandb", "leet", "inspect", run, "--json"]
said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
records = [json.loads(line) for line in said.splitlines()]
told = [record["history"]["item"] for record in records if record["type"] == "history"]
print(json.dumps({item["train/global_step"]: item["train/loss"] for item in told if "train/loss" in item}))
"""


@pytest.mark.real_model
@pytest.mark.parametrize(("library", "reader"), [("trackio", TRACKIO), ("mlflow", MLFLOW), ("wandb", WANDB)])
def test_a_library_that_is_installed_has_every_loss_when_the_worker_has_ended(
    library: str, reader: str, workshop: Any, make_chats: Callable[..., Any]
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed; it is for those who want it")
    job = workshop.job(make_chats(24), *SETTINGS, f"train.report_to=[{library}]")
    live = workshop.start(job)
    outcome = live.until(lambda event: event["event"] == "outcome")
    assert outcome["outcome"] == "completed", outcome
    assert live.process.wait(PATIENCE_SECONDS) == 0
    introduce_run(workshop.paths, workshop.folder(job), [library], is_offline=True)
    command = [sys.executable, "-c", reader, job]
    read = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    found = {int(step): loss for step, loss in json.loads(read.stdout.splitlines()[-1]).items()}
    lines = [orjson.loads(line) for line in workshop.folder(job).trainer_log.read_bytes().splitlines()]
    logged = {line["current_steps"]: line["loss"] for line in lines if "loss" in line}
    assert len(logged) > 3
    assert found == pytest.approx(logged, rel=1e-6)


def test_a_folder_is_not_taken_for_the_library_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B leaves one where it was run."""
    (tmp_path / "looks_like_one").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="pip install looks_like_one"):
        require_reporters(["looks_like_one"])


def test_a_missing_library_stops_the_daemon_before_it_takes_a_file(tmp_path: Path) -> None:
    name = a_missing_one()
    with pytest.raises(ConfigError, match=rf"train\.report_to: found no library {name}.*pip install {name}"):
        daemon.run(tmp_path, overrides=[f"train.report_to=[tensorboard, {name}]"], until_idle=True)
    assert list(tmp_path.iterdir()) == []


def test_a_library_removed_later_fails_the_job_with_the_key(
    workshop: Any, make_chats: Callable[..., Any]
) -> None:
    name = a_missing_one()
    outcome, _ = workshop.carry_out(workshop.job(make_chats(4), f"train.report_to=[{name}]"))
    assert (outcome.outcome, outcome.kind) == ("failed", "config")
    assert "train.report_to" in outcome.message and f"pip install {name}" in outcome.message


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
