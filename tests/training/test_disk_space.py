"""What a run is going to write, and what is said when it does not fit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import durable
from config import load_config
from errors import EnvironmentNotReady
from monitoring.events import EventWriter
from tests.conftest import Workshop
from tests.small_disk import SmallDisk, small_disk
from training import worker
from training.daemon_link import DaemonLink
from training.disk_space import (
    BYTES_PER_WEIGHT,
    EMBEDDED_BYTES,
    LOG_BYTES,
    NOTHING,
    RESERVED_INODES,
    Need,
    adapter_weights,
    demand,
    forecast,
    room_in,
    shortage,
)
from training.jobs import Job, JobStore

Records = Callable[..., list[dict[str, Any]]]


def job_of(workshop: Any, job_id: str) -> Job:
    job = JobStore(workshop.paths).get(job_id)
    assert job is not None
    return job


def written(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.config_key("disk.min_free_bytes")
def test_what_is_missing_is_told_with_found_and_needed_bytes(tmp_path: Path) -> None:
    free = room_in(tmp_path).size_bytes
    assert shortage(tmp_path, Need(1000, 1), min_free_bytes=0) is None
    assert shortage(tmp_path, Need(1000, 1), min_free_bytes=free // 2) is None
    reason = shortage(tmp_path, Need(3 * 2**30, 1), min_free_bytes=2 * free)
    assert reason is not None
    for part in (str(tmp_path), "free, expected", "3 GiB to write", "disk.min_free_bytes", "free some space"):
        assert part in reason
    with pytest.raises(EnvironmentNotReady, match="to leave free"):
        demand(tmp_path, NOTHING, 2 * free)


def test_inodes_run_out_like_bytes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=10m,nr_inodes=200") as disk:
        assert shortage(disk.folder, Need(0, 20), 0) is None
        disk.take_inodes(leave=RESERVED_INODES + 19)
        reason = shortage(disk.folder, Need(0, 20), 0)
        assert reason is not None
        assert (
            f"room for {RESERVED_INODES + 19} more files (inodes), expected {RESERVED_INODES + 20}" in reason
        )


# PEFT reads an attribute that transformers deprecates; `training.model` silences it where we load.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_the_weights_of_a_new_adapter_are_counted_without_loading_the_model(
    targets: str | list[str], tiny_model: Path, tmp_path: Path
) -> None:
    config = load_config(tmp_path, [f"train.lora_target_modules={targets}", "train.lora_r=5"]).train
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = get_peft_model(model, LoraConfig(r=5, target_modules=targets, task_type="CAUSAL_LM"))
    real = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert adapter_weights(tiny_model, config) == real


@pytest.mark.parametrize("kind", ["first", "continued", "resumed"])
def test_the_forecast_of_a_run_is_close_to_what_it_writes_at_most(
    kind: str, workshop: Any, make_chats: Records
) -> None:
    settings = (
        *("train.save_total_limit=2", "train.eval_steps=3", "train.per_device_train_batch_size=2"),
        "evaluation.sample_prompts=0",
    )
    if kind == "continued":
        workshop.carry_out(workshop.job(make_chats(30, seed=1), *settings))
        workshop.paths.current.symlink_to("versions/v0001")
    job_id = workshop.job(make_chats(60), *settings)
    if kind == "resumed":
        workshop.carry_out(job_id, command="pause", at_step=9)
    before = written(workshop.paths.models)
    need = forecast(workshop.paths, job_of(workshop, job_id))
    workshop.carry_out(job_id)
    more = written(workshop.paths.models) - before
    assert more <= need.size_bytes <= 4 * more + 2 * LOG_BYTES
    assert need.inodes < 200


def test_a_forecast_grows_with_checkpoints_input_and_rank(workshop: Any, make_chats: Records) -> None:
    def needed(count: int, *settings: str) -> int:
        return forecast(
            workshop.paths, job_of(workshop, workshop.job(make_chats(count), *settings))
        ).size_bytes

    plain = needed(20)
    assert needed(2000) > plain
    assert needed(20, "train.lora_r=64") > plain
    assert needed(20, "train.save_total_limit=10") > plain
    assert needed(20, "model.base=./nowhere") < plain


def test_a_packed_input_is_expected_to_unfold(workshop: Any, make_chats: Records) -> None:
    job = job_of(workshop, workshop.job(make_chats(500)))
    packed = job.model_copy(update={"suffix": ".jsonl.gz"})
    assert (
        forecast(workshop.paths, packed).size_bytes
        > 3 * job.size_bytes + forecast(workshop.paths, job).size_bytes
    )


def test_the_embedded_model_is_counted_until_it_is_there(workshop: Any, make_chats: Records) -> None:
    job = job_of(workshop, workshop.job(make_chats(20), "model.base=embedded"))
    absent = forecast(workshop.paths, job).size_bytes
    folder = workshop.paths.base_models / "smollm2-135m-instruct"
    durable.make_folder(folder)
    for path in workshop.model.iterdir():
        os.link(path, folder / path.name)
    durable.seal_folder(folder)
    present = forecast(workshop.paths, job).size_bytes
    config = load_config(workshop.paths.base).train
    checkpoint = adapter_weights(workshop.model, config) * BYTES_PER_WEIGHT
    assert absent >= EMBEDDED_BYTES
    assert 0 < checkpoint < present < EMBEDDED_BYTES


def test_a_job_with_a_broken_config_is_left_to_the_worker(workshop: Any, make_chats: Records) -> None:
    job_id = workshop.job(make_chats(4))
    workshop.folder(job_id).config_file.write_text("train: {nonsense: 1}\n")
    assert forecast(workshop.paths, job_of(workshop, job_id)) == NOTHING


class FillingLink(DaemonLink):
    """A link that fills the disk when a step is done."""

    def __init__(self, events: EventWriter, disk: SmallDisk, at_step: int, leave_bytes: int) -> None:
        super().__init__(events)
        self._disk, self._at_step, self._leave_bytes = disk, at_step, leave_bytes

    def emit(self, event: Any) -> None:
        super().emit(event)
        if event.event == "step" and event.step == self._at_step:
            self._disk.fill(leave_bytes=self._leave_bytes)


@pytest.mark.parametrize("leave_bytes", [0, 40_000])
def test_a_checkpoint_that_meets_a_full_disk_leaves_the_job_waiting_and_nothing_torn(
    leave_bytes: int, tmp_path: Path, tiny_model: Path, make_chats: Records
) -> None:
    with small_disk(tmp_path / "disk", "size=50m") as disk, (tmp_path / "events").open("wb", 0) as events:
        shop = Workshop(disk.folder, tiny_model)
        settings = (
            "train.per_device_train_batch_size=2",
            "train.eval_steps=3",
            "evaluation.sample_prompts=0",
        )
        undisturbed, _ = shop.carry_out(shop.job(make_chats(24), *settings))
        job = shop.job(make_chats(24), *settings)
        link = FillingLink(EventWriter(events.fileno()), disk, 5, leave_bytes)
        outcome = worker.carry_out(shop.paths, job, link)
        assert (outcome.outcome, outcome.kind) in [("waiting", "disk"), ("waiting", "environment")], outcome
        folders = list(shop.folder(job).folder.glob("*checkpoint-*"))
        assert {folder.name for folder in folders} == {"checkpoint-2", "checkpoint-4"}
        assert all(durable.is_sealed(folder) for folder in folders)
        disk.clear()
        resumed, events_of_resumed = shop.carry_out(job)
        assert next(event for event in events_of_resumed if event["event"] == "step")["step"] == 5
        adapters = [
            durable.sha256_file(shop.paths.versions / str(end.version) / "adapter_model.safetensors")
            for end in (undisturbed, resumed)
        ]
        assert adapters[0] == adapters[1]


def test_a_version_that_meets_a_full_disk_leaves_the_job_waiting_and_no_half_of_it(
    tmp_path: Path, tiny_model: Path, make_chats: Records
) -> None:
    with small_disk(tmp_path / "disk", "size=50m") as disk, (tmp_path / "events").open("wb", 0) as events:
        shop = Workshop(disk.folder, tiny_model)
        job = shop.job(make_chats(8))
        link = PublishingLink(EventWriter(events.fileno()), disk)
        outcome = worker.carry_out(shop.paths, job, link)
        assert (outcome.outcome, outcome.kind) == ("waiting", "disk")
        assert list(shop.paths.versions.iterdir()) == []
        disk.clear()
        outcome, _ = shop.carry_out(job)
        assert (outcome.outcome, outcome.version) == ("completed", "v0001")


class PublishingLink(DaemonLink):
    """A link that leaves too little room when the run comes to its version."""

    def __init__(self, events: EventWriter, disk: SmallDisk) -> None:
        super().__init__(events)
        self._disk = disk

    def emit(self, event: Any) -> None:
        super().emit(event)
        if event.event == "phase" and event.phase == "publishing":
            self._disk.fill(leave_bytes=20_000)
