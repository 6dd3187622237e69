"""What a run learned becomes a version: its files, and the facts about where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import durable
from config import Config
from monitoring.events import PublishedEvent, now
from training.checkpoints import Checkpoint
from training.jobs import Job
from training.model import Learner
from training.optimization import OPTIMIZER, PARAMETER_NAMES
from training.promotion import Decision
from training.trainer import RecordLosses
from training.version_matrix import transfer_of
from training.version_report import REPORT, RESULTS, ModelRole, VersionReport
from training.versions import HeldOutResult, RecordCounts, Version, VersionFacts, VersionStore

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "vocab.json", "merges.txt", "tokenizer.model"),
)
TRAINING_STATE = "training_state"
"""Folder of a version that holds the optimizer's moments for a run that continues it."""


@dataclass(frozen=True)
class Result:
    """The checkpoint that was chosen, and how it compares with what the run began with."""

    candidate: Checkpoint
    losses: tuple[RecordLosses, RecordLosses] | None
    """Of the run's own held-out records, before and after; None where nothing was held out."""
    decision: Decision
    report: VersionReport
    results: Path
    """Folder with the single results of the test."""


@dataclass(frozen=True)
class Publication:
    """Everything a version is made from."""

    job: Job
    config: Config
    learner: Learner
    parent: Version | None
    train_records: int
    replayed: dict[str, int]
    """By earlier job: records trained again in each epoch."""
    steps: int
    result: Result

    def publish(self, versions: VersionStore) -> Version:
        """Put the version together and commit it; what a full disk cut short is removed."""
        staging = versions.stage()
        try:
            self._fill(staging)
            facts, report = self._facts(), self.result.report
            transfer = transfer_of(versions, facts, report, staging / RESULTS)
            report = report.model_copy(update={"transfer": transfer})
            durable.write_json(staging / REPORT, report.model_dump(mode="json"))
            return versions.publish(staging, facts, report)
        except OSError:
            if staging.exists():
                durable.remove_tree(staging)
            raise

    def _fill(self, staging: Path) -> None:
        checkpoint = self.result.candidate.folder
        for name in ADAPTER_FILES:
            durable.copy_file(checkpoint / name, staging / name)
        for name in TOKENIZER_FILES:
            if (self.learner.base / name).is_file():
                durable.copy_file(self.learner.base / name, staging / name)
        _copy_moments(checkpoint, staging / TRAINING_STATE)
        _copy_results(self.result.results, staging / RESULTS)

    def _facts(self) -> VersionFacts:
        best = self.result.candidate.facts
        held_out = _held_out(self.result)
        return VersionFacts(
            parent=None if self.parent is None else self.parent.name,
            consolidated=None if self.parent is None else self.parent.facts.consolidated,
            job_id=self.job.job_id,
            input_name=self.job.name,
            input_sha256=self.job.sha256,
            base_model=str(self.learner.base),
            base_sha256=self.learner.base_sha256,
            created_at=now(),
            config=self.config.model_dump(mode="json"),
            records=RecordCounts(train=self.train_records, held_out=held_out.records, replayed=self.replayed),
            steps=self.steps,
            epochs=self.config.train.num_train_epochs,
            tokens=best.tokens,
            train_loss=best.train_loss,
            held_out=held_out,
            decision=self.result.decision.decide,
            decision_reason=self.result.decision.reason,
            decision_reasons=self.result.decision.reasons,
            best_checkpoint=best.step,
        )


def published_event(version: Version) -> PublishedEvent:
    """Tell the daemon what its manifest says."""
    facts = version.facts
    return PublishedEvent(
        version=version.name,
        decision=facts.decision,
        reason=facts.decision_reason,
        reasons=facts.decision_reasons,
        before_loss=facts.held_out.before_loss,
        after_loss=facts.held_out.after_loss,
    )


def _copy_moments(checkpoint: Path, folder: Path) -> None:
    durable.make_folder(folder)
    for name in (OPTIMIZER, PARAMETER_NAMES):
        durable.copy_file(checkpoint / name, folder / name)


def _copy_results(test: Path, folder: Path) -> None:
    for role in get_args(ModelRole):
        for path in sorted((test / role).glob("*.jsonl")):
            durable.make_folder(folder / role)
            durable.copy_file(path, folder / role / path.name)


def _held_out(result: Result) -> HeldOutResult:
    if result.losses is None:
        return HeldOutResult(records=0)
    before, after = result.losses
    return HeldOutResult(
        records=len(after.sums),
        before_loss=before.mean,
        after_loss=after.mean,
        mean_difference=result.decision.mean_difference,
        interval=result.decision.interval,
    )
