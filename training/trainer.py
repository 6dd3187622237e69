"""TRL's trainers with one optimizer step as the unit: planned, exact to resume, weighted by token.

Three things are ours. A step trains the records that `StepPlan` gives it, cut into micro-batches, so that
its records, loss and gradient do not depend on how it is cut. The loss of a step is the sum over its
trained tokens (or its pairs) divided by their number. And a number that is not finite ends the run before
it reaches a weight or a file.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.trainer.utils import use_adapter

from config import Config
from errors import ConfigError, EnvironmentNotReady, JobFailed
from evaluation.fixed_eval import Calibration
from evaluation.losses import target_log_probs
from evaluation.short_memory import free_memory, halved, in_parts
from monitoring.live_monitor import LiveMonitor
from training.adapter import leave_widening_to_autocast, nonsense_in, save_adapter
from training.batches import Batch, Row, StepPlan, collate, in_length_order
from training.daemon_link import Interrupted
from training.dataset import TokenRows
from training.disk_space import BYTES_PER_WEIGHT, FILES_OF_A_CHECKPOINT, Need, shortage
from training.memory_findings import Purpose
from training.model import Learner
from training.optimization import (
    carry_moments,
    learning_rate_factor,
    parameter_names,
    survive_short_memory,
    write_parameter_names,
)

logger = logging.getLogger(__name__)

REFERENCE = "ref"
"""Name under which TRL keeps a frozen copy of the adapter that DPO compares with."""


@dataclass(frozen=True)
class Losses:
    """One sum for each record, and what it is divided by: its trained tokens, or 1 for a pair."""

    sums: torch.Tensor
    weights: list[int]
    calibration: Calibration | None = None
    """Of the predictions of the trained tokens; where those are what is learned, and only in evaluation."""


@dataclass(frozen=True)
class RecordLosses:
    """Held-out losses, record by record in file order."""

    sums: list[float]
    weights: list[int]
    calibration: Calibration | None = None
    """None for pairs, whose loss is none of single tokens."""

    @property
    def per_record(self) -> list[float]:
        """Nats per trained token of each record, or the loss of each pair."""
        return [total / weight for total, weight in zip(self.sums, self.weights, strict=True)]

    @property
    def mean(self) -> float:
        """Nats per trained token of all records together; each token counts once."""
        return math.fsum(self.sums) / sum(self.weights)

    @property
    def standard_error(self) -> float:
        """Of the mean, from how much its records differ."""
        mean = self.mean
        deviations = (total - weight * mean for total, weight in zip(self.sums, self.weights, strict=True))
        return math.sqrt(math.fsum(part * part for part in deviations)) / sum(self.weights)


@dataclass(frozen=True)
class StepNumbers:
    """What one optimizer step was made of."""

    loss: float
    grad_norm: float
    """Before clipping."""
    weight: int
    """Trained tokens, or pairs."""
    tokens: int
    """All tokens, padding not counted."""


class PlannedTrainer(Trainer):  # type: ignore[misc]
    """Mixin before a TRL trainer: one item of its loader is one optimizer step.

    A subclass says what a batch loses; training and evaluation are the same for all of them.
    """

    control: Any
    lr_scheduler: Any
    optimizer: Any

    def setup(
        self,
        config: Config,
        rows: TokenRows,
        held_out: TokenRows | None,
        pad_token_id: int,
        moments: Path | None = None,
        on_eval_batch: Callable[[], None] = lambda: None,
        on_short_memory: Callable[[Purpose, int], None] = lambda purpose, size: None,
        live: LiveMonitor | None = None,
    ) -> None:
        """Give the trainer what TRL's constructors have no place for.

        `moments` is the ``training_state/`` of the version whose optimizer moments are carried over;
        `on_eval_batch` is called after each batch of an evaluation and may raise to end it; `live` is shown
        the predictions and gradients of each step; `on_short_memory` gets the new number of records in a pass
        where memory did not hold the old one.
        """
        self.config = config
        self.rows = rows
        self.held_out = held_out
        self.pad_token_id = pad_token_id
        self.moments = moments
        self.on_eval_batch = on_eval_batch
        self.on_short_memory = on_short_memory
        self.live = live
        self.micro_batch = config.train.per_device_train_batch_size
        self.eval_batch = config.evaluation.per_device_eval_batch_size
        self.last_step: StepNumbers | None = None
        self.last_evaluation: RecordLosses | None = None
        self.train_dataset = rows.dataset
        self.remove_callback(PrinterCallback)
        if self.args.bf16:
            leave_widening_to_autocast(self.model)

    def losses(self, batch: Batch) -> Losses:
        """Return what each record of `batch` loses."""
        raise NotImplementedError

    def weights(self, batch: Batch) -> list[int]:
        """Return what the loss of each record is divided by."""
        raise NotImplementedError

    def log_probs(self, batch: Batch, calibration: Calibration | None = None) -> torch.Tensor:
        """Return the summed log-probability of the trained tokens of each sequence.

        In evaluation `calibration` is shown the predictions.
        """
        on_logits: Callable[[torch.Tensor], None] | None = None
        if torch.is_grad_enabled():
            on_logits = None if self.live is None else self.live.see_logits
        elif calibration is not None:
            on_logits = partial(calibration.add, targets=batch.targets)
        each = target_log_probs(
            *(self.model, batch.input_ids, batch.positions, batch.targets, batch.position_ids),
            on_logits=on_logits,
        )
        return torch.stack([part.sum() for part in torch.split(each, batch.counts)])

    # --- one step

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which every record is trained once."""
        return len(self._plan())

    def _plan(self) -> StepPlan:
        train = self.config.train
        return StepPlan(
            *(self.rows.lengths, train.per_device_train_batch_size, train.gradient_accumulation_steps),
            train.seed,
        )

    def get_train_dataloader(self) -> Any:
        """Return the loader whose items are the rows of one optimizer step."""
        loader = DataLoader(self.rows.dataset, batch_sampler=self._plan(), collate_fn=list)
        return self.accelerator.prepare(loader)

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> torch.Tensor:
        """Accumulate the gradient of one optimizer step; return its loss.

        Where memory does not hold a micro-batch, the step begins again with halves of it, and the smaller
        size stays for the rest of the run. Raises JobFailed when it does not hold a single record.
        """
        model.train()
        while True:
            try:
                return self._accumulate(inputs)
            except torch.OutOfMemoryError as error:
                if self.micro_batch == 1:
                    raise JobFailed("oom", _too_large(inputs)) from error
            # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
            model.zero_grad()
            self._halve_micro_batch()

    def _accumulate(self, rows: list[Row]) -> torch.Tensor:
        packed = self.config.train.batching == "packed"
        size = self.micro_batch
        batches = [
            collate(rows[at : at + size], packed=packed, pad_token_id=self.pad_token_id)
            for at in range(0, len(rows), size)
        ]
        weight = sum(sum(self.weights(batch)) for batch in batches)
        loss = torch.zeros((), device=self.args.device)
        for batch in batches:
            part = self.losses(batch.to(self.args.device)).sums.sum() / weight
            self.accelerator.backward(part)
            loss += part.detach()
        self._pending = loss, weight, sum(batch.tokens for batch in batches)
        return loss

    def _halve_micro_batch(self) -> None:
        """Go on with half as many records in a pass; raise JobFailed when there is but one."""
        if self.micro_batch == 1:
            raise JobFailed("oom", f"memory does not hold the moments of the adapter; {_REMEDY}")
        free_memory()
        self.micro_batch = halved(self.micro_batch)
        self._tell_short_memory("training", self.micro_batch)

    def _halve_eval_batch(self, size: int) -> None:
        self.eval_batch = size
        self._tell_short_memory("evaluation", size)

    def _tell_short_memory(self, purpose: Purpose, size: int) -> None:
        logger.warning(
            "Out of memory at step %d, in %s; records in a pass now %d", self.state.global_step, purpose, size
        )
        self.on_short_memory(purpose, size)

    def _clip_grad_norm(self, model: Any) -> Any:
        if self.live is not None:
            self.live.see_gradients(self.state.global_step + 1)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> float:
        """Return the norm before clipping; raise JobFailed when it or the loss is not finite.

        This runs after the backward pass and before the optimizer, so that no weight is touched.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        step_loss, weight, tokens = self._pending
        # One transfer for both numbers: each would wait for the GPU by itself.
        loss: float
        loss, norm = torch.stack([step_loss, torch.as_tensor(norm, device=step_loss.device)]).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise JobFailed(
                "nan",
                f"step {self.state.global_step + 1}: loss {loss}, gradient norm {norm}, expected finite "
                "numbers; lower train.learning_rate, or look for damaged records; the last checkpoint stands",
            )
        self.last_step = StepNumbers(loss, norm, weight, tokens)
        return self.last_step.grad_norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Count nothing: transformers would look for one padded batch in `inputs`."""
        return 0

    # --- optimizer and learning rate

    def create_optimizer(self, model: Any = None) -> Optimizer:
        """Create the optimizer; carry the moments of the version before into a new one."""
        is_new = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(model)
        if is_new:
            survive_short_memory(optimizer, self._halve_micro_batch)
        if is_new and self.moments is not None:
            carry_moments(optimizer, parameter_names(self.model, optimizer), self.moments)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the learning-rate schedule of this run; it does not know of earlier files."""
        if self.lr_scheduler is None:
            train = self.config.train

            def factor(step: int) -> float:
                return learning_rate_factor(step, num_training_steps, train)

            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # --- evaluation

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the held-out records and tell the callbacks ``eval_loss``, in nats per trained token."""
        assert self.held_out is not None
        began_at = time.monotonic()
        try:
            losses = self.record_losses(self.held_out)
        except Interrupted:
            # The checkpoint of this step is written without a score, which a resumed run makes up for.
            self.control.should_training_stop = True
            return {}
        if not math.isfinite(losses.mean):
            raise JobFailed("nan", f"step {self.state.global_step}: held-out loss {losses.mean}")
        self.last_evaluation = losses
        metrics = {
            f"{metric_key_prefix}_loss": losses.mean,
            f"{metric_key_prefix}_standard_error": losses.standard_error,
            f"{metric_key_prefix}_tokens": sum(losses.weights),
        }
        self.log(metrics)
        metrics[f"{metric_key_prefix}_seconds"] = time.monotonic() - began_at
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def record_losses(self, rows: TokenRows, on_batch: Callable[[], None] | None = None) -> RecordLosses:
        """Score every record; the batch size changes speed and memory, not the result.

        `on_batch` is called after each batch, in place of what `setup` was given for that.
        """
        sums, weights = [0.0] * len(rows), [0] * len(rows)
        calibration: Calibration | None = None
        was_training = self.model.training
        self.model.eval()
        for group in in_length_order(rows.lengths, self.config.evaluation.per_device_eval_batch_size):
            for numbers, losses in in_parts(
                *(group, self.eval_batch),
                lambda some: self._score([rows.dataset[number] for number in some]),
                self._halve_eval_batch,
            ):
                for number, total, weight in zip(numbers, losses.sums.tolist(), losses.weights, strict=True):
                    sums[number], weights[number] = total, weight
                if losses.calibration is not None:
                    calibration = calibration or Calibration()
                    calibration.merge(losses.calibration)
                (on_batch or self.on_eval_batch)()
        self.model.train(was_training)
        return RecordLosses(sums, weights, calibration)

    def _score(self, rows: list[Row]) -> Losses:
        batch = collate(rows, packed=False, pad_token_id=self.pad_token_id)
        with torch.no_grad(), self.accelerator.autocast():
            return self.losses(batch.to(self.args.device))

    # --- files

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint of finite numbers; raise JobFailed before the first byte otherwise.

        Raises EnvironmentNotReady where the disk is too full for it. What was written stays behind, torn.
        """
        if (name := nonsense_in(self.model)) is not None:
            raise JobFailed("nan", f"step {self.state.global_step}: {name} holds numbers that are not finite")
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            # Past TRL's own, which would write a model card into the run folder.
            Trainer._save_checkpoint(self, model, trial)
            write_parameter_names(folder, parameter_names(self.model, self.optimizer))
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch and safetensors do not tell a full disk from other trouble.
            weights = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
            reason = shortage(folder.parent, Need(weights * BYTES_PER_WEIGHT, FILES_OF_A_CHECKPOINT), 0)
            if reason is None:
                raise
            raise EnvironmentNotReady(f"step {self.state.global_step} cannot be saved: {reason}") from error

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the adapter alone: the tokenizer lies with the base, the arguments in config.yaml."""
        assert output_dir is not None
        save_adapter(self.model, Path(output_dir))


class ChatTrainer(PlannedTrainer, SFTTrainer):  # type: ignore[misc]
    """Learns to say the trained tokens."""

    def losses(self, batch: Batch) -> Losses:
        calibration = None if torch.is_grad_enabled() else Calibration()
        return Losses(-self.log_probs(batch, calibration), self.weights(batch), calibration)

    def weights(self, batch: Batch) -> list[int]:
        return batch.counts


class _PairTrainer(PlannedTrainer):
    def weights(self, batch: Batch) -> list[int]:
        return [1] * (len(batch.counts) // 2)


class DirectPreferenceTrainer(_PairTrainer, DPOTrainer):  # type: ignore[misc]
    """Learns to prefer the chosen answer more than the model it began as (arXiv:2305.18290)."""

    def losses(self, batch: Batch) -> Losses:
        policy = self.log_probs(batch)
        with torch.no_grad(), use_adapter(self.model, REFERENCE):
            reference = self.log_probs(batch)
        chosen, rejected = (policy - reference).chunk(2)
        margins = self.config.train.preference_beta * (chosen - rejected)
        return Losses(-functional.logsigmoid(margins), self.weights(batch))

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class OddsRatioTrainer(_PairTrainer, ORPOTrainer):  # type: ignore[misc]
    """Learns the chosen answer and to prefer it, without a reference (arXiv:2403.07691).

    Unlike TRL's, the first part is of the answer alone: prompts are never trained here.
    """

    def losses(self, batch: Batch) -> Losses:
        lengths = torch.tensor(batch.counts, device=batch.targets.device)
        chosen, rejected = (self.log_probs(batch) / lengths).chunk(2)
        preference, *_ = self.odds_ratio_loss(chosen, rejected)
        return Losses(-chosen - preference, self.weights(batch))

    def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
        return {}


def build_trainer(
    learner: Learner, folder: Path, config: Config, kind: str, callbacks: list[TrainerCallback]
) -> PlannedTrainer:
    """Build the trainer for records of `kind`; `PlannedTrainer.setup` completes it."""
    if kind != "preference":
        trainer, arguments = ChatTrainer, SFTConfig
        special: dict[str, Any] = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    else:
        is_dpo = config.train.preference_loss == "dpo"
        trainer, arguments = (
            (DirectPreferenceTrainer, DPOConfig) if is_dpo else (OddsRatioTrainer, ORPOConfig)
        )
        special = {"beta": config.train.preference_beta, "disable_dropout": False}
    try:
        args = arguments(**_arguments(learner, folder, config), **special)
    except ValueError as error:
        raise ConfigError(f"train: {error}") from error
    return trainer(
        model=learner.model,
        args=args,
        # TRL's constructors prepare the data they are given; ours is prepared and comes in `setup`.
        train_dataset=Dataset.from_dict({"input_ids": [[0]]}),
        data_collator=list,
        processing_class=learner.tokenizer,
        callbacks=callbacks,
    )


def _arguments(learner: Learner, folder: Path, config: Config) -> dict[str, Any]:
    train = config.train
    return {
        "output_dir": str(folder),
        "num_train_epochs": train.num_train_epochs,
        "per_device_train_batch_size": train.per_device_train_batch_size,
        # An item of the loader is a whole step, whose micro-batches `training_step` makes.
        "gradient_accumulation_steps": 1,
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "seed": train.seed,
        "bf16": learner.precision == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "activation_checkpointing": config.model.gradient_checkpointing,
        "logging_steps": 1,
        # On, it would show a loss of 0.0 for every step that is not a number.
        "logging_nan_inf_filter": False,
        # `RunCallback` says when to evaluate and when to save.
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def _too_large(rows: Sequence[Row]) -> str:
    longest = max(len(sequence) for row in rows for sequence in row["input_ids"])
    return f"memory does not hold one record of {longest} tokens; {_REMEDY}"


_REMEDY = (
    "set model.gradient_checkpointing or model.load_in_4bit to true, or lower data.max_length or train.lora_r"
)
