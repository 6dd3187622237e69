"""The evaluating phase of a run: the best checkpoint is tested, and whether it becomes current is decided."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import durable
from chat_template import ChatTemplate
from config import Config, Paths, RunPaths
from errors import JobFailed
from intake.report import ReportCard
from monitoring.events import PhaseEvent
from training import checkpoints
from training.adapter import load_adapter, set_adapter_weights
from training.checkpoints import Checkpoint
from training.daemon_link import DaemonLink
from training.dataset import TokenRows
from training.file_doubts import doubts_about, read_exchanges
from training.jobs import Job
from training.model import Learner, hash_tokenizer
from training.publication import Result
from training.slices import earlier_slices, held_out_slice, suite_slices
from training.throughput import training_seconds
from training.trainer import PlannedTrainer, RecordLosses
from training.verdict import judge
from training.version_report import Settings
from training.version_test import Measured, Models, VersionTest
from training.versions import Version


class Examination:
    """Tests what a job has trained.

    Made before anything else is done, so that a run ends at once when what it will be tested on is missing.
    """

    def __init__(
        self,
        paths: Paths,
        job: Job,
        config: Config,
        link: DaemonLink,
        template: ChatTemplate,
        parent: Version | None,
    ) -> None:
        """`parent` is what the run continues.

        Raises ConfigError when a suite of ``evaluation.suites`` is not there, IntegrityError when records
        that an earlier file has held out are gone.
        """
        self._paths = paths
        self._job = job
        self._config = config
        self._link = link
        self._template = template
        self._folder: RunPaths = paths.run(job.job_id)
        self._parent = parent
        self._others = [*earlier_slices(paths, parent), *suite_slices(paths, config.evaluation)]

    def carry_out(
        self,
        trainer: PlannedTrainer,
        learner: Learner,
        initial: dict[str, Any],
        held_out: TokenRows | None,
    ) -> Result:
        """Compare the best checkpoint with what the run began with, and with the base; then decide."""
        candidate = checkpoints.best(
            checkpoints.list_checkpoints(self._folder.folder), self._config.scoring.selection
        )
        if candidate is None:
            raise JobFailed("steps", "all steps are done, but no whole checkpoint is there; it was removed")
        models = Models(trainer.model, candidate.folder, initial)
        began_at = time.monotonic()
        losses = None if held_out is None else self._losses(trainer, held_out, candidate, initial)
        loss_seconds = time.monotonic() - began_at
        measured = self._measure(models, learner)
        if measured.seconds is not None:
            measured = replace(measured, seconds=loss_seconds + measured.seconds)
        card = ReportCard.model_validate(durable.read_json(self._folder.report))
        exchanges = read_exchanges(self._folder.train_records, self._folder.held_out_records)
        own = held_out_slice(self._paths, self._job.job_id, self._job.name)
        decision, report = judge(
            measured,
            own.facts(0 if losses is None else len(losses[1].sums)),
            losses,
            doubts_about(card, exchanges),
            self._config.promotion,
            self._config.train.seed,
        )
        return Result(candidate, losses, decision, report, self._folder.version_test)

    @staticmethod
    def _losses(
        trainer: PlannedTrainer, held_out: TokenRows, candidate: Checkpoint, initial: dict[str, Any]
    ) -> tuple[RecordLosses, RecordLosses]:
        """Return the losses of all held-out records, as the trainer reckons, before and after."""
        set_adapter_weights(trainer.model, initial)
        before = trainer.record_losses(held_out)
        load_adapter(trainer.model, candidate.folder)
        return before, trainer.record_losses(held_out)

    def _measure(self, models: Models, learner: Learner) -> Measured:
        settings = Settings(
            base_sha256=learner.base_sha256,
            precision=learner.precision,
            max_new_tokens=self._config.evaluation.max_new_tokens,
            load_in_4bit=self._config.model.load_in_4bit,
            tokenizer_sha256=hash_tokenizer(learner.base, self._config.model),
            chat_template_kwargs=self._config.model.chat_template_kwargs,
        )
        test = VersionTest(
            self._folder.version_test,
            models,
            self._template,
            self._config.evaluation,
            self._config.data,
            settings,
            parent=self._parent,
            on_batch=self._link.check,
            on_progress=self._report_progress,
        )
        own = held_out_slice(self._paths, self._job.job_id, self._job.name)
        return test.carry_out(own, self._others, training_seconds(self._folder))

    def _report_progress(self, done: int, total: int) -> None:
        self._link.emit(PhaseEvent(phase="evaluating", done=done, total=total, unit="parts"))
        self._link.check()
