"""The whole daemon with the real worker: however it is disturbed, the versions are the same bit for bit."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon_base import Base
from tests.exactness import learned, told
from tests.waiting import wait_until

SETTINGS = (
    *("train.lora_dropout=0.1", "train.gradient_accumulation_steps=2", "train.num_train_epochs=8"),
    *("train.per_device_train_batch_size=2", "train.eval_steps=6", "train.batching=packed"),
    *("train.learning_rate=1e-2", "train.threads=1", "model.precision=float32"),
    *("data.held_out_fraction=0.2", "evaluation.sample_prompts=0"),
)


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    made = Base(tmp_path / "daemon", worker="-P -m training.worker")
    yield made
    made.close()


def test_kills_of_daemon_and_worker_and_a_pause_leave_no_trace_in_what_is_learned(
    base: Base, workshop: Any, make_pairs: Callable[..., Any]
) -> None:
    records = make_pairs(30)
    outcome, _ = workshop.carry_out(workshop.job(records, *SETTINGS))
    assert outcome.outcome == "completed"

    settings = (*SETTINGS, f"model.base={workshop.model}")
    drop(base, "pairs.jsonl", records)
    daemon = base.start(*settings)
    wait_until(lambda: base.is_at_step(7))
    daemon.send_signal(signal.SIGKILL)
    daemon.communicate()
    wait_until(lambda: base.workers() == [])

    daemon = base.start(*settings)
    wait_until(lambda: base.is_at_step(14))
    for process in base.workers():
        process.send_signal(signal.SIGKILL)
    daemon.send_signal(signal.SIGKILL)
    daemon.communicate()
    assert base.job().outcome is None

    daemon = base.start(*settings)
    wait_until(lambda: base.is_at_step(20))
    base.command("pause")
    wait_until(lambda: base.is_in("paused") and base.acknowledged("pause"))
    base.command("resume")
    wait_until(lambda: base.files("done") == {"pairs.jsonl"})
    base.end(daemon)

    assert learned(base.paths, "v0001") == learned(workshop.paths, "v0001")
    job = base.job()
    steps = told(base.paths.run(job.job_id))
    assert {len(numbers) for numbers in steps.values()} == {1}
    starts = [event["start_step"] for event in base.events(job) if event["event"] == "plan"]
    assert len(starts) == 4
    assert 0 == starts[0] < starts[1] < starts[2] < starts[3] < len(steps)


def drop(base: Base, name: str, records: list[dict[str, Any]]) -> None:
    """Drop a file whole."""
    part = base.paths.inbox / f".{name}"
    part.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in records))
    part.rename(base.paths.inbox / name)
