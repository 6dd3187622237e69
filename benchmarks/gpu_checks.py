"""What has to hold on a GPU as it does on the CPU: packing, going on after a kill, and too little memory."""

from __future__ import annotations

import dataclasses
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from benchmarks.contenders import Work, our_trainer, run_config
from benchmarks.shapes import PAD_TOKEN_ID, SEED, random_learner, random_model, random_rows
from training.adapter import adapter_weights
from training.batches import collate

PACKED_RECORDS = 4
PRETENDED_TOKENS = 64
"""Largest pass that fits into the memory of a pretended shortage, where no real one can be had."""


@dataclass(frozen=True)
class LogitDifferences:
    """Largest absolute differences between the logits of records alone and packed into one row."""

    packed: float
    without_positions: float
    """The same row without the positions that tell its records apart: what a leak looks like."""
    largest_logit: float


@dataclass(frozen=True)
class Ending:
    """How a run ended that was killed or not."""

    steps: int
    adapter: Path


@dataclass(frozen=True)
class Comparison:
    """Two finished adapters."""

    is_equal: bool
    """Bit for bit."""
    max_difference: float


@dataclass(frozen=True)
class Recovery:
    """A run that did not fit into memory."""

    micro_batch_before: int
    micro_batch_after: int
    steps: int
    planned_steps: int
    loss: float
    peak_bytes: int
    is_pretended: bool
    """No real shortage: there was no GPU."""


def packed_logits(work: Work, dtype: torch.dtype, folder: Path) -> LogitDifferences:
    """Compare the logits of a few records, each alone and all in one row."""
    model = random_model(work.shape, work.device, dtype).eval()
    rows = random_rows(folder / "rows.arrow", work.shape, PACKED_RECORDS, work.longest).dataset
    records = [rows[number] for number in range(PACKED_RECORDS)]
    batch = collate(records, packed=True, pad_token_id=PAD_TOKEN_ID).to(work.device)
    with torch.no_grad():
        singles = [collate([record], packed=False, pad_token_id=PAD_TOKEN_ID) for record in records]
        alone = torch.cat([model(input_ids=one.input_ids.to(work.device)).logits[0] for one in singles])
        packed = model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits[0]
        mixed = model(input_ids=batch.input_ids, use_cache=False).logits[0]
    return LogitDifferences(
        float((packed - alone).abs().max()), float((mixed - alone).abs().max()), float(alone.abs().max())
    )


class _Killer(TrainerCallback):  # type: ignore[misc]
    """Has a checkpoint made after one step, and the process killed in the middle of a later one."""

    def __init__(self, save_after: int, kill_in: int | None) -> None:
        self._save_after = save_after
        self._kill_in = kill_in

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        control.should_save = state.global_step == self._save_after

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._kill_in is not None and state.global_step + 1 == self._kill_in:
            os.kill(os.getpid(), signal.SIGKILL)


def train_to_the_end(work: Work, folder: Path, is_killed: bool, is_deterministic: bool) -> Ending:
    """Train `work` from its checkpoint in `folder`, or from the start.

    A run that is to be killed never returns: it makes a checkpoint half-way and ends itself by SIGKILL two
    steps later, after the backward pass.
    """
    if is_deterministic:
        transformers.enable_full_determinism(SEED)
    learner = random_learner(work.shape, work.device)
    rows = random_rows(folder / "rows.arrow", work.shape, work.records, work.longest)
    half = work.steps // 2
    killer = _Killer(half, half + 2 if is_killed else None)
    trainer = our_trainer(run_config(work, folder), folder, learner, rows, [killer])
    checkpoint = folder / f"checkpoint-{half}"
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint.exists() else None)
    adapter = folder / "finished.safetensors"
    save_file(adapter_weights(learner.model), adapter)
    return Ending(trainer.state.global_step, adapter)


def compare(left: Ending, right: Ending) -> Comparison:
    """Compare two finished adapters number by number."""
    ours, theirs = load_file(left.adapter), load_file(right.adapter)
    assert ours.keys() == theirs.keys()
    differences = [float((ours[name] - theirs[name]).abs().max()) for name in ours]
    return Comparison(all(torch.equal(ours[name], theirs[name]) for name in ours), max(differences))


def recover_from_shortage(work: Work, folder: Path) -> Recovery:
    """Train with micro-batches that memory does not hold, and see what the trainer makes of it."""
    learner = random_learner(work.shape, work.device)
    is_pretended = work.device.type == "cpu"
    if is_pretended:
        learner.model.register_forward_pre_hook(_pretend_shortage, with_kwargs=True)
    rows = random_rows(folder / "rows.arrow", work.shape, work.records, work.longest)
    trainer = our_trainer(run_config(work, folder), folder, learner, rows, [])
    trainer.train()
    assert trainer.last_step is not None
    return Recovery(
        micro_batch_before=work.micro_batch,
        micro_batch_after=trainer.micro_batch,
        steps=trainer.state.global_step,
        planned_steps=work.steps,
        loss=trainer.last_step.loss,
        peak_bytes=0 if is_pretended else torch.cuda.max_memory_allocated(work.device),
        is_pretended=is_pretended,
    )


def _pretend_shortage(model: torch.nn.Module, arguments: Any, named: dict[str, Any]) -> None:
    if named["input_ids"].numel() > PRETENDED_TOKENS:
        raise torch.OutOfMemoryError(f"pretended: a pass of more than {PRETENDED_TOKENS} tokens")


def too_large(work: Work) -> Work:
    """Return `work` in micro-batches of so many records that they cannot fit into 24 GB."""
    return dataclasses.replace(work, micro_batch=work.micro_batch * work.accumulation * 4, accumulation=1)
