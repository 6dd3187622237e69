"""Three ways to train one random model on the same records, each timed: ours, bare, and TRL's defaults."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from benchmarks.shapes import (
    PAD_TOKEN_ID,
    SEED,
    Shape,
    random_learner,
    random_rows,
    synchronise,
    training_flops,
)
from chat_template import IGNORE
from config import Config, load_config
from evaluation.losses import target_log_probs
from training.adapter import leave_widening_to_autocast
from training.batches import StepPlan, collate
from training.dataset import TokenRows
from training.model import Learner
from training.trainer import PlannedTrainer, build_trainer

TRL_BATCH_SIZE = 8
"""SFTConfig's own default."""
Contender = Literal["ours", "ours packed", "bare", "TRL defaults"]


@dataclass(frozen=True)
class Work:
    """What is trained, and how much of it."""

    shape: Shape
    device: torch.device
    micro_batch: int
    accumulation: int
    longest: int
    warm_up_steps: int
    timed_steps: int
    is_checkpointed: bool = False
    """Activations are recomputed in the backward pass."""

    @property
    def steps(self) -> int:
        return self.warm_up_steps + self.timed_steps

    @property
    def records(self) -> int:
        return self.steps * self.micro_batch * self.accumulation


@dataclass(frozen=True)
class Done:
    """The useful work of some optimizer steps."""

    lengths: list[int]
    trained_tokens: int


@dataclass(frozen=True)
class Speed:
    """How fast one contender was."""

    tokens_per_second: float
    """Tokens of records, padding not counted."""
    flops_per_second: float
    peak_bytes: int
    """Most memory that tensors took on the device; 0 on the CPU."""


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Times the steps after the warm-up; the device is waited for at both ends only."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._started_at = self._ended_at = 0.0

    @property
    def seconds(self) -> float:
        return self._ended_at - self._started_at

    def click(self, step: int) -> None:
        """Note the time if the timed steps begin or end after `step`."""
        if step == self._work.warm_up_steps:
            synchronise(self._work.device)
            self._started_at = time.perf_counter()
        elif step == self._work.steps:
            synchronise(self._work.device)
            self._ended_at = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.click(state.global_step)


def measure(contender: Contender, work: Work, folder: Path) -> Speed:
    """Train with one contender in this process, which should be a fresh one, and return its speed."""
    learner = random_learner(work.shape, work.device)
    rows = random_rows(folder / "rows.arrow", work.shape, work.records, work.longest)
    run: dict[Contender, Callable[[Work, Path, Learner, TokenRows, Stopwatch], Done]] = {
        "ours": _ours,
        "ours packed": _ours_packed,
        "bare": _bare,
        "TRL defaults": _trl_defaults,
    }
    stopwatch = Stopwatch(work)
    done = run[contender](work, folder, learner, rows, stopwatch)
    flops = training_flops(work.shape, done.lengths, done.trained_tokens)
    peak = torch.cuda.max_memory_allocated(work.device) if work.device.type == "cuda" else 0
    return Speed(sum(done.lengths) / stopwatch.seconds, flops / stopwatch.seconds, peak)


def run_config(work: Work, folder: Path, batching: str = "buckets") -> Config:
    """Return the project's configuration for `work`; keys that do not matter keep their defaults."""
    values = {
        "model.gradient_checkpointing": str(work.is_checkpointed).lower(),
        "train.per_device_train_batch_size": work.micro_batch,
        "train.gradient_accumulation_steps": work.accumulation,
        "train.batching": batching,
        "train.seed": SEED,
    }
    return load_config(folder, [f"{key}={value}" for key, value in values.items()])


def our_trainer(
    config: Config, folder: Path, learner: Learner, rows: TokenRows, callbacks: list[TrainerCallback]
) -> PlannedTrainer:
    """Build the project's own trainer, ready to train `rows`."""
    trainer = build_trainer(learner, folder, config, "chat", callbacks)
    trainer.setup(config, rows, None, PAD_TOKEN_ID)
    return trainer


def _ours(
    work: Work,
    folder: Path,
    learner: Learner,
    rows: TokenRows,
    stopwatch: Stopwatch,
    batching: str = "buckets",
) -> Done:
    config = run_config(work, folder, batching)
    our_trainer(config, folder, learner, rows, [stopwatch]).train()
    return _done(rows, [number for step in _plan(work, rows)[work.warm_up_steps :] for number in step])


def _ours_packed(work: Work, folder: Path, learner: Learner, rows: TokenRows, stopwatch: Stopwatch) -> Done:
    return _ours(work, folder, learner, rows, stopwatch, "packed")


def _bare(work: Work, folder: Path, learner: Learner, rows: TokenRows, stopwatch: Stopwatch) -> Done:
    """Train the very batches of ours in the shortest loop that does the same arithmetic."""
    model: Any = learner.model
    if work.is_checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    leave_widening_to_autocast(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0, fused=True)
    plan = _plan(work, rows)
    for number, step in enumerate(plan, start=1):
        _bare_step(model, [rows.dataset[record] for record in step], work)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        stopwatch.click(number)
    return _done(rows, [record for step in plan[work.warm_up_steps :] for record in step])


def _bare_step(model: Any, rows: Sequence[Any], work: Work) -> None:
    cuts = [rows[at : at + work.micro_batch] for at in range(0, len(rows), work.micro_batch)]
    batches = [collate(cut, packed=False, pad_token_id=PAD_TOKEN_ID) for cut in cuts]
    weight = sum(sum(batch.counts) for batch in batches)
    for batch in batches:
        there = batch.to(work.device)
        with torch.autocast(work.device.type, torch.bfloat16):
            log_probs = target_log_probs(model, there.input_ids, there.positions, there.targets)
        torch.autograd.backward(-log_probs.sum() / weight)


def _trl_defaults(work: Work, folder: Path, learner: Learner, rows: TokenRows, stopwatch: Stopwatch) -> Done:
    """Train with SFTTrainer and SFTConfig as they come; only what has to be given is."""
    args = SFTConfig(
        output_dir=str(folder),
        max_steps=work.steps,
        use_cpu=work.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    records = TRL_BATCH_SIZE * work.steps
    flat = [rows.dataset[number % len(rows)] for number in range(records)]
    dataset = Dataset.from_list(
        [{key: row[key][0].tolist() for key in ("input_ids", "labels")} for row in flat]
    )
    trainer = SFTTrainer(
        model=learner.model,
        args=args,
        train_dataset=dataset,
        processing_class=learner.tokenizer,
        callbacks=[stopwatch],
    )
    trainer.remove_callback(PrinterCallback)
    assert args.per_device_train_batch_size == TRL_BATCH_SIZE
    batches: list[list[dict[str, list[int]]]] = []
    collate_batch = trainer.data_collator

    def collate_and_note(examples: list[dict[str, list[int]]]) -> Any:
        batches.append(examples)
        return collate_batch(examples)

    trainer.data_collator = collate_and_note
    trainer.train()
    timed = [row for batch in batches[work.warm_up_steps : work.steps] for row in batch]
    trained = sum(label != IGNORE for row in timed for label in row["labels"])
    return Done([len(row["input_ids"]) for row in timed], trained)


def _plan(work: Work, rows: TokenRows) -> list[list[int]]:
    """Return the record numbers of each step of ours."""
    return list(StepPlan(rows.lengths, work.micro_batch, work.accumulation, SEED))


def _done(rows: TokenRows, numbers: Sequence[int]) -> Done:
    trained = sum(int((rows.dataset[number]["labels"][0] != IGNORE).sum()) for number in numbers)
    return Done([int(rows.lengths[number]) for number in numbers], trained)
