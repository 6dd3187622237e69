"""The worker as the daemon sees it: a process that may be killed, paused and started again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from config import Paths
from durable import sha256_file
from training.versions import VersionStore

EXACT = ("train.lora_dropout=0.1", "train.gradient_accumulation_steps=2", "train.num_train_epochs=2")
SMALL_STEPS = ("train.per_device_train_batch_size=2", "train.eval_steps=3")
CASES = {
    "buckets": ("train.batching=buckets",),
    "packed": ("train.batching=packed",),
    "dpo": ("train.preference_loss=dpo",),
}


def adapter_of(paths: Paths, name: str) -> str:
    return sha256_file(VersionStore(paths).get(name).folder / "adapter_model.safetensors")


def moments_of(paths: Paths, name: str) -> str:
    return sha256_file(VersionStore(paths).get(name).folder / "training_state" / "optimizer.pt")


@pytest.mark.parametrize("case", CASES)
def test_a_killed_worker_ends_in_the_same_bytes_as_an_undisturbed_one(
    case: str, workshop: Any, make_chats: Callable[..., Any], make_pairs: Callable[..., Any]
) -> None:
    records = (make_pairs if case == "dpo" else make_chats)(30)
    settings = (*EXACT, *SMALL_STEPS, *CASES[case])
    undisturbed = workshop.job(records, *settings)
    outcome, _ = workshop.carry_out(undisturbed)
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
    assert adapter_of(workshop.paths, "v0002") == adapter_of(workshop.paths, "v0001")
    assert moments_of(workshop.paths, "v0002") == moments_of(workshop.paths, "v0001")
