"""One job on its way to a version: validate, load, train, evaluate, publish.

Each phase leaves something sealed in the run folder, so that a worker that was killed, or paused, goes on
where the last one was and ends in the same bytes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HUB_OFFLINE

import durable
from chat_template import ChatTemplate
from config import Config, Paths, RunPaths, load_config
from errors import EnvironmentNotReady, FileRefused, JobFailed
from evaluation.generation import Generator
from intake.formats import Kind
from intake.report import ReportCard
from intake.validation import PlanInputs, check_file
from monitoring.events import NoteEvent, Outcome, OutcomeEvent, Phase, PhaseEvent, PlanEvent, ReportEvent
from monitoring.live_monitor import watch
from training import checkpoints
from training.adapter import adapter_weights
from training.batches import replay_turns
from training.callbacks import RunCallback
from training.daemon_link import Command, DaemonLink, Interrupted
from training.dataset import REPLAY, TokenRows, tokenise_run
from training.evolution import Evolution
from training.final_examination import Examination
from training.full_models import base_under
from training.held_out import HeldOutExamples, held_out_files, held_out_keys, keep_held_out
from training.jobs import Job
from training.memory_findings import Circumstances, MemoryFindings, Purpose, RunMemory, length_bucket
from training.model import (
    Learner,
    Precision,
    device_name,
    hash_tokenizer,
    load_learner,
    set_threads,
    trainable_parameters,
)
from training.publication import TRAINING_STATE, Publication, published_event
from training.replay import Drawn, Lottery, Remembered, Way, remember, replayed_rows, sources
from training.reporting import introduce_run, reporting, require_reporters
from training.throughput import last_throughput
from training.trainer import PlannedTrainer, Replayed, build_trainer
from training.versions import Version, VersionStore

logger = logging.getLogger(__name__)

OUTCOMES: dict[Command, Outcome] = {"pause": "paused", "stop": "stopped", "skip": "skipped"}


@dataclass(frozen=True)
class Start:
    """What a run began with; decided once, so that going on later changes nothing."""

    parent: str | None
    precision: Precision


class Run:
    """Carries out one job; everything it needs is given, everything it makes lies in its folder."""

    def __init__(self, paths: Paths, job: Job, link: DaemonLink) -> None:
        self._paths = paths
        self._job = job
        self._link = link
        self._folder: RunPaths = paths.run(job.job_id)
        self._config: Config = load_config(self._folder.folder)
        self._versions = VersionStore(paths)

    def carry_out(self) -> OutcomeEvent:
        """Take the job as far as it goes and return how it ended."""
        try:
            version = self._versions.version_of_job(self._job.job_id) or self._make_version()
        except Interrupted as interrupted:
            return OutcomeEvent(outcome=OUTCOMES[interrupted.command], step=self._step())
        return OutcomeEvent(
            outcome="completed",
            version=version.name,
            step=version.facts.steps,
            message=version.facts.decision_reason,
        )

    def _make_version(self) -> Version:
        require_reporters(self._config.train.report_to)
        set_threads(self._config.train)
        start = self._start()
        parent = self._parent(start)
        base = base_under(
            self._paths, self._config.model, None if parent is None else parent.facts, prepare=True
        )
        template = ChatTemplate.load(base, self._config.model.chat_template_kwargs)
        examination = Examination(self._paths, self._job, self._config, self._link, template, parent)
        drawn = self._draw(self._validate(template, parent), start, parent)
        rows, held_out, replayed = self._tokenise(template, hash_tokenizer(base, self._config.model), drawn)
        self._phase("loading")
        learner = self._load(base, parent, start)
        trainer, callback = self._prepare(learner, parent, template, rows, held_out, replayed)
        initial = adapter_weights(learner.model)
        self._train(trainer, callback)
        self._phase("evaluating")
        result = examination.carry_out(trainer, learner, initial, held_out)
        self._phase("publishing")
        remember(self._paths, self._job, self._config.train)
        publication = Publication(
            job=self._job,
            config=self._config,
            learner=learner,
            parent=parent,
            train_records=rows.facts.records,
            replayed=_replayed_records(trainer),
            steps=self._step(),
            result=result,
        )
        version = publication.publish(self._versions)
        self._link.emit(published_event(version))
        return version

    # --- validate

    def _validate(self, template: ChatTemplate, parent: Version | None) -> ReportCard:
        self._phase("validating")
        if not self._folder.report.exists():
            self._check(template, parent)
        report = ReportCard.model_validate(durable.read_json(self._folder.report))
        self._link.emit(
            ReportEvent(
                format=report.format,
                accepted=report.accepted,
                refused=report.refused,
                held_out=report.held_out,
                usable=report.usable,
            )
        )
        if not report.usable:
            raise FileRefused(report.reason or "the file cannot be used")
        keep_held_out(self._paths, self._job.job_id)
        return report

    def _check(self, template: ChatTemplate, parent: Version | None) -> None:
        """Judge every record of the file; what is written is whole once the report is there."""
        train = self._config.train

        def replayed(kind: Kind, rows: int) -> dict[str, int]:
            return self._lottery(parent).expected(rows, self._remembered(kind, parent))

        report = check_file(
            self._folder.input(self._job.suffix),
            self._config.data,
            template,
            seed=train.seed,
            name=self._job.name,
            plan=PlanInputs(
                batch_records=train.per_device_train_batch_size * train.gradient_accumulation_steps,
                epochs=train.num_train_epochs,
                tokens_per_second=last_throughput(self._paths, self._config.model),
                replayed=replayed,
                test_share=self._config.evaluation.max_test_share,
            ),
            output=self._folder,
            held_out_keys=held_out_keys(self._paths),
            held_out_files=held_out_files(self._paths),
            on_progress=self._report_progress,
        )
        logger.info("Validated %s: %d accepted, %d refused", report.name, report.accepted, report.refused)

    def _report_progress(self, done: int, total: int, records: int) -> None:
        self._link.emit(PhaseEvent(phase="validating", done=done, total=total, unit="bytes"))
        self._link.check()

    def _remembered(self, kind: Kind, parent: Version | None) -> list[Remembered]:
        """Return the earlier files whose records may be mixed into a run of `kind`."""
        way: Way = "preferences" if kind == "preference" else "answers"
        return sources(self._paths, self._versions, parent, way)

    def _lottery(self, parent: Version | None) -> Lottery:
        name = None if parent is None else parent.name
        return Lottery(self._paths, self._job.job_id, self._config.train, name)

    def _draw(self, report: ReportCard, start: Start | None, parent: Version | None) -> Drawn:
        """Choose which records of earlier files this run trains again."""
        assert report.kind is not None and report.plan is not None
        if start is not None and not self._folder.replay_facts.exists():
            return Drawn(parent=start.parent, records={})  # begun by a release that had no replay
        return self._lottery(parent).draw(
            report.plan.rows, self._remembered(report.kind, parent), self._config.data
        )

    def _tokenise(
        self, template: ChatTemplate, key: str, drawn: Drawn
    ) -> tuple[TokenRows, TokenRows | None, Replayed | None]:
        files = {"train": self._folder.train_records}
        if drawn.records:
            files[REPLAY] = self._folder.replay_records
        if self._folder.held_out_records.exists() and self._folder.held_out_records.stat().st_size:
            files["held_out"] = self._folder.held_out_records
        rows = tokenise_run(
            *(self._folder.tokens, files, template, key, self._config.data),
            on_progress=lambda done: self._link.check(),
        )
        if not len(rows["train"]):
            raise FileRefused(
                f"no record has a trained token within {self._config.data.max_length} tokens; "
                "raise data.max_length"
            )
        if lost := rows["train"].facts.lost_records:
            self._note(f"{lost} records have nothing trained within data.max_length and are left out")
        replayed = None
        if drawn.records:
            wanted = replayed_rows(len(rows["train"]), self._config.train.replay_ratio)
            replayed = Replayed(rows[REPLAY], replay_turns(rows[REPLAY], drawn.records, wanted))
        return rows["train"], rows.get("held_out"), replayed

    # --- load

    def _start(self) -> Start | None:
        """Return what this run began with, or None when it has not begun."""
        if not self._folder.start.exists():
            return None
        stored = durable.read_json(self._folder.start)
        return Start(stored["parent"], stored["precision"])

    def _parent(self, start: Start | None) -> Version | None:
        """Return the version this run continues: the one it began with, or the current one."""
        if start is None:
            return self._versions.current()
        return None if start.parent is None else self._versions.get(start.parent)

    def _load(self, base: Path, parent: Version | None, start: Start | None) -> Learner:
        """Load the model this run began with, or begins with now."""
        if parent is not None:
            self._versions.verify(parent)
        learner = load_learner(base, self._config, parent, None if start is None else start.precision)
        if start is None:
            document = {"parent": None if parent is None else parent.name, "precision": learner.precision}
            durable.write_json(self._folder.start, {"schema_version": 1, **document})
        for note in learner.notes:
            self._note(note)
        return learner

    def _moments(self, parent: Version | None) -> Path | None:
        """Return where the moments to start with lie; the new adapter of a merged version has none."""
        if parent is None or self._config.train.optimizer_state != "carry":
            return None
        return None if parent.facts.kind == "consolidation" else parent.folder / TRAINING_STATE

    def _prepare(
        self,
        learner: Learner,
        parent: Version | None,
        template: ChatTemplate,
        rows: TokenRows,
        held_out: TokenRows | None,
        replayed: Replayed | None,
    ) -> tuple[PlannedTrainer, RunCallback]:
        examples = HeldOutExamples(
            self._folder.held_out_records,
            Generator(learner.model, template, self._config.evaluation),
            template,
            self._config.evaluation,
        )
        evolution = Evolution(
            self._folder.evolution,
            examples,
            self._link,
            max_share=self._config.evaluation.max_share,
            model_version="base" if parent is None else parent.name,
        )
        callback = RunCallback(self._folder, self._config, learner.precision, self._link, evolution)
        introduce_run(self._paths, self._folder, self._config.train.report_to, is_offline=HF_HUB_OFFLINE)
        trainer = build_trainer(learner, self._folder.folder, self._config, rows.facts.kind, [callback])
        memory = self._memory(learner, rows, held_out, replayed)

        def on_short_memory(purpose: Purpose, size: int) -> None:
            memory.remember(purpose, size)
            if purpose == "evaluation":  # of training the callback tells, once a step
                self._note(f"memory was short: {size} held-out records are scored at once from now on")

        trainer.setup(
            self._config,
            rows,
            held_out,
            template.pad_token_id,
            moments=self._moments(parent),
            on_eval_batch=self._link.check,
            on_short_memory=on_short_memory,
            live=watch(learner.model.named_parameters(), self._config.monitoring),
            replayed=replayed,
        )
        trainer.micro_batch, trainer.eval_batch = memory.size_for("training"), memory.size_for("evaluation")
        if self._step() == 0:
            for note in memory.notes():
                self._note(note)
        steps_per_epoch = trainer.steps_per_epoch
        self._link.emit(
            PlanEvent(
                records=rows.facts.records,
                epochs=self._config.train.num_train_epochs,
                steps_per_epoch=steps_per_epoch,
                total_steps=steps_per_epoch * self._config.train.num_train_epochs,
                tokens_per_epoch=rows.facts.tokens,
                start_step=self._step(),
                parent=None if parent is None else parent.name,
                trainable_parameters=trainable_parameters(learner.model),
                replayed=_replayed_records(trainer),
            )
        )
        return trainer, callback

    def _memory(
        self,
        learner: Learner,
        rows: TokenRows,
        held_out: TokenRows | None,
        replayed: Replayed | None,
    ) -> RunMemory:
        """Return what earlier runs found out about the memory that this one takes."""
        model, train = self._config.model, self._config.train
        trained = [rows] if replayed is None else [rows, replayed.rows]

        def circumstances(purpose: Purpose, *its_rows: TokenRows) -> Circumstances:
            return Circumstances(
                purpose=purpose,
                base_sha256=learner.base_sha256,
                device=device_name(),
                kind=rows.facts.kind,
                length_bucket=length_bucket(max(int(some.lengths.max(initial=0)) for some in its_rows)),
                lora_r=train.lora_r,
                precision=learner.precision,
                load_in_4bit=model.load_in_4bit,
                gradient_checkpointing=model.gradient_checkpointing,
            )

        return RunMemory(
            MemoryFindings(self._paths),
            {
                "training": circumstances("training", *trained),
                "evaluation": circumstances("evaluation", rows if held_out is None else held_out),
            },
            {
                "training": train.per_device_train_batch_size,
                "evaluation": self._config.evaluation.per_device_eval_batch_size,
            },
        )

    # --- train

    def _train(self, trainer: PlannedTrainer, callback: RunCallback) -> None:
        """Do the steps that are left; raise Interrupted when a command ended them early."""
        checkpoints.remove_torn(self._folder.folder)
        start = checkpoints.newest(checkpoints.list_checkpoints(self._folder.folder))
        callback.attach(trainer, None if start is None else start.facts)
        self._phase("training")
        total = trainer.steps_per_epoch * self._config.train.num_train_epochs
        owes_evaluation = (
            start is not None
            and start.facts.is_candidate
            and start.facts.eval_loss is None
            and trainer.held_out is not None
        )
        is_open = start is None or (start.facts.step < total and callback.stopped_early is None)
        if is_open or owes_evaluation:
            trainer.args.eval_on_start = owes_evaluation
            try:
                with reporting(self._config.train.report_to):
                    trainer.train(resume_from_checkpoint=None if start is None else str(start.folder))
            except (OSError, EnvironmentNotReady):
                checkpoints.remove_torn(self._folder.folder)  # what a full disk cut short only fills it
                raise
            self._link.check()
            if trainer.state.global_step != total and callback.stopped_early is None:
                raise JobFailed("steps", f"did {trainer.state.global_step} of {total} planned steps")
        if callback.stopped_early is not None:
            self._note(f"stopped early: {callback.stopped_early}")

    # --- telling

    def _phase(self, phase: Phase) -> None:
        logger.info("Job %s: %s", self._job.job_id, phase)
        self._link.emit(PhaseEvent(phase=phase))
        self._link.check()

    def _note(self, message: str) -> None:
        logger.warning("%s", message)
        self._link.emit(NoteEvent(message=message))

    def _step(self) -> int:
        """Return the step from which the run would go on."""
        last = checkpoints.newest(checkpoints.list_checkpoints(self._folder.folder, verify=False))
        return 0 if last is None else last.facts.step


def _replayed_records(trainer: PlannedTrainer) -> dict[str, int]:
    """Return how many records of each earlier job an epoch trains again."""
    turns = {} if trainer.replayed is None else trainer.replayed.turns.shares
    return {job_id: count for job_id, (_, count) in turns.items()}
