"""The worker as the daemon sees it: a process that may be killed, paused and started again."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch

from durable import is_sealed
from errors import ConfigError, EnvironmentNotReady, IntegrityError, JobFailed
from monitoring.events import EventWriter, StepEvent
from tests.exactness import learned
from training import worker
from training.daemon_link import DaemonLink

ROOT = Path(__file__).parent.parent.parent

EXACT = ("train.lora_dropout=0.1", "train.gradient_accumulation_steps=2", "train.num_train_epochs=2")
SMALL_STEPS = ("train.per_device_train_batch_size=2", "train.eval_steps=3")
CASES = {
    "buckets": ("train.batching=buckets",),
    "packed": ("train.batching=packed",),
    "dpo": ("train.preference_loss=dpo",),
}


class PowerCut(BaseException):
    """What no handler of the worker expects."""


class FailingLink(DaemonLink):
    """A link through which the power goes when a step has been told of."""

    def __init__(self, events: EventWriter, at_step: int) -> None:
        super().__init__(events)
        self._at_step = at_step

    def emit(self, event: Any) -> None:
        super().emit(event)
        if isinstance(event, StepEvent) and event.step == self._at_step:
            raise PowerCut


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_ended_without_a_word_ends_in_the_same_bytes_as_an_undisturbed_one(
    case: str, workshop: Any, make_chats: Callable[..., Any], make_pairs: Callable[..., Any], tmp_path: Path
) -> None:
    records = (make_pairs if case == "dpo" else make_chats)(30)
    settings = (*EXACT, *SMALL_STEPS, *CASES[case])
    outcome, _ = workshop.carry_out(workshop.job(records, *settings))
    assert outcome.outcome == "completed", outcome
    cut = workshop.job(records, *settings)
    with open(tmp_path / "events", "wb", buffering=0) as file, pytest.raises(PowerCut):
        worker.carry_out(workshop.paths, cut, FailingLink(EventWriter(file.fileno()), at_step=8))
    ending, events = workshop.carry_out(cut)
    plan = next(event for event in events if event["event"] == "plan")
    assert (ending.outcome, plan["start_step"]) == ("completed", 6)
    assert learned(workshop.paths, "v0002") == learned(workshop.paths, "v0001")


def test_a_killed_worker_ends_in_the_same_bytes_as_an_undisturbed_one(
    workshop: Any, make_chats: Callable[..., Any]
) -> None:
    records, settings = make_chats(30), (*EXACT, *SMALL_STEPS)
    outcome, _ = workshop.carry_out(workshop.job(records, *settings))
    assert outcome.outcome == "completed", outcome

    killed = workshop.job(records, *settings)
    first = workshop.start(killed)
    first.until(lambda event: event["event"] == "checkpoint" and event["step"] >= 6)
    first.kill()
    second = workshop.start(killed)
    ending = second.until(lambda event: event["event"] == "outcome")
    assert second.process.wait() == 0
    plan = next(event for event in second.events if event["event"] == "plan")
    assert ending["outcome"] == "completed", ending
    assert plan["start_step"] >= 6
    assert learned(workshop.paths, "v0002") == learned(workshop.paths, "v0001")


def test_a_worker_without_a_job_ends_in_peace(workshop: Any) -> None:
    idle = workshop.start(None)
    idle.process.stdin.close()
    assert [(event["event"], event["phase"]) for event in idle.read()] == [("phase", "starting")]
    assert idle.process.wait() == 0


def test_a_worker_is_paused_by_a_word_and_ends(workshop: Any, make_chats: Callable[..., Any]) -> None:
    job = workshop.job(make_chats(60), *SMALL_STEPS, "train.num_train_epochs=50")
    running = workshop.start(job)
    running.until(lambda event: event["event"] == "step")
    running.tell({"command": "pause"})
    ending = running.until(lambda event: event["event"] == "outcome")
    assert ending["outcome"] == "paused"
    assert ending["step"] >= 1
    assert running.process.wait() == 0
    assert is_sealed(workshop.folder(job).checkpoint(ending["step"]))


def test_a_worker_dies_with_the_daemon(workshop: Any, make_chats: Callable[..., Any]) -> None:
    job = workshop.job(make_chats(60), *SMALL_STEPS, "train.num_train_epochs=500")
    reading, writing = os.pipe()
    # A daemon that starts a worker, tells who it is, and is killed.
    daemon = subprocess.Popen(
        [sys.executable, "-c", SHORT_LIVED_DAEMON, str(workshop.paths.base), str(writing), job],
        pass_fds=[writing],
        cwd=ROOT,
    )
    os.close(writing)
    with open(reading, "rb") as events:
        for line in events:
            if json.loads(line)["event"] == "step":
                break
        daemon.kill()
        daemon.wait()
        # The pipe ends when nobody can write to it any more: the worker is gone.
        last = events.read().splitlines()[-1:]
    assert all(json.loads(line)["event"] != "outcome" for line in last)


SHORT_LIVED_DAEMON = """
import json, os, subprocess, sys, time
base, events, job = sys.argv[1:]
worker = subprocess.Popen(
    [sys.executable, "-m", "training.worker", base, events, str(os.getpid())],
    stdin=subprocess.PIPE, pass_fds=[int(events)],
)
worker.stdin.write(json.dumps({"job_id": job}).encode() + b"\\n")
worker.stdin.flush()
os.close(int(events))
worker.wait()
"""


def test_a_worker_whose_daemon_is_gone_already_does_not_begin(workshop: Any) -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "training.worker", str(workshop.paths.base), "1", "1"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert "the daemon that started this worker is gone" in finished.stderr


def test_a_second_worker_waits_for_the_first_and_gives_up_in_peace(
    workshop: Any, make_chats: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.worker.LOCK_SECONDS", 0.05)
    job = workshop.job(make_chats(4))
    with filelock.FileLock(workshop.paths.worker_lock):
        outcome, _ = workshop.carry_out(job)
    assert (outcome.outcome, outcome.kind) == ("waiting", "lock")


@pytest.mark.parametrize(
    ("error", "outcome", "kind"),
    [
        (JobFailed("nan", "loss nan"), "failed", "nan"),
        (EnvironmentNotReady("no GPU"), "waiting", "environment"),
        (IntegrityError("a byte differs"), "failed", "integrity"),
        (ConfigError("train.optim: found magic"), "failed", "config"),
        (OSError(errno.ENOSPC, "No space left on device"), "waiting", "disk"),
        (torch.OutOfMemoryError("CUDA out of memory"), "failed", "oom"),
        (ZeroDivisionError("division by zero"), "failed", "error"),
    ],
)
def test_every_way_to_end_is_an_outcome(
    error: Exception, outcome: str, kind: str, workshop: Any, make_chats: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def end(*_: Any) -> None:
        raise error

    monkeypatch.setattr("training.run.load_learner", end)
    ending, _ = workshop.carry_out(workshop.job(make_chats(4)))
    assert (ending.outcome, ending.kind) == (outcome, kind)
    assert str(error) in (ending.message or "")


def test_a_job_nobody_queued_fails(workshop: Any) -> None:
    workshop.folder("000009-00000000").folder.mkdir()
    outcome, _ = workshop.carry_out("000009-00000000")
    assert (outcome.outcome, outcome.kind) == ("failed", "job")
