"""The test of a version as it is kept: ``evaluation.json`` and, beside it, every single result.

    evaluation.json                     slices, scores, tests, verdict, transfer
    evaluation/<model>/<slice>.jsonl    a line with the settings, then one line for each record

Models are ``candidate`` (the version itself), ``current`` (what its run began with) and ``base`` (what lies
under its adapter).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from errors import IntegrityError
from evaluation.intervals import wilson
from evaluation.items import ItemResult

REPORT = "evaluation.json"
RESULTS = "evaluation"
"""Folder of a version that holds the single results."""

ModelRole = Literal["candidate", "current", "base"]
SliceKind = Literal["held_out", "suite"]
Measure = Literal["loss", "verbatim", "answers", "preference"]
"""Nats per token; whether the expected answer is said word for word; whether the answer was graded right;
whether the chosen answer of a pair is likelier than the rejected one."""


class Document(BaseModel):
    """A part of the report; frozen."""

    model_config = ConfigDict(frozen=True)


class SliceFacts(Document):
    """Records that models are tested on together."""

    slice_id: str
    """The job the records were held out of, or a suite's name with the start of its hash."""
    kind: SliceKind
    name: str
    records: int


class SliceScore(Document):
    """What one model made of one slice; null is what was not measured."""

    records: int
    loss: float | None = None
    """Mean over the records of nats per token of the expected answer, of the chosen one, or of the text."""
    verbatim: float | None = None
    """Share of the records whose expected answer the model says word for word."""
    accuracy: float | None = None
    """Share of the answered records that were graded right; of pairs, share whose chosen answer is likelier
    than the rejected one; null for texts."""
    f1: float | None = None
    answered: int = 0
    interval: tuple[float, float] | None = None
    """Wilson's, of `accuracy`; of `verbatim` where nothing was answered."""
    measure: Measure | None = None
    """What `share_right` is of; ``loss`` where there are losses alone."""
    measured: int | None = None
    """Of how many of the records."""
    tokens_per_second: float | None = None

    @property
    def share_right(self) -> float | None:
        """Accuracy, or what is known of it without answers."""
        return self.verbatim if self.accuracy is None else self.accuracy


class SliceTest(Document):
    """One paired test of the candidate on one slice."""

    slice_id: str
    name: str
    against: Literal["current", "base"]
    measure: Measure
    records: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float] | None = None
    margin: float = 0.0
    """What is tolerated: by so many nats per token the loss may rise, by so large a share answers be lost."""
    noise_floor: float | None = None
    """By so much the model before seems worse than itself when other records are drawn; told, not added."""
    gained: int | None = None
    lost: int | None = None
    p_worse: float
    p_better: float
    adjusted_p_worse: float = 1.0
    """After Holm, over all tests of the version."""
    adjusted_p_better: float = 1.0
    outcome: Literal["worse", "better", "no difference"] = "no difference"


class Verdict(Document):
    """What the gate decided, and why."""

    decision: Literal["promote", "hold"]
    policy: str
    reasons: tuple[str, ...]


class TransferFacts(Document):
    """What the lineage up to this version kept of all it learned; null is unknown."""

    average_accuracy: float | None = None
    """Mean share right over the slices of all files that were learned, each of the same weight."""
    average_measures: tuple[Measure, ...] = ()
    """What that is the mean of."""
    backward_transfer: float | None = None
    """Mean change of the share right on each earlier file's records since it was learned."""
    forward_transfer: float | None = None
    """Mean lead over the base on each file's records just before it was learned, the first file left out."""


class VersionReport(Document):
    """The whole document ``evaluation.json``."""

    schema_version: int = 1
    slices: tuple[SliceFacts, ...] = ()
    scores: dict[ModelRole, dict[str, SliceScore]] = {}
    tests: tuple[SliceTest, ...] = ()
    verdict: Verdict
    transfer: TransferFacts = TransferFacts()
    training_seconds: float | None = None
    test_seconds: float | None = None
    """Null for a test that was interrupted: nobody knows what the parts of it took together."""


class Settings(Document):
    """What results hang on besides model and record; results under other settings are not comparable."""

    base_sha256: str
    precision: str
    max_new_tokens: int
    load_in_4bit: bool = False
    tokenizer_sha256: str | None = None
    """Of the tokenizer and the template; null in results of older releases."""
    chat_template_kwargs: dict[str, Any] = {}
    max_length: int | None = None
    """Where passages were cut, and how; null where there were none."""
    excess_length: str | None = None


def score(results: Sequence[ItemResult], confidence: float) -> SliceScore:
    """Sum the results of one model on one slice up."""
    losses = [result.loss for result in results if result.loss is not None]
    said = [result.says_expected for result in results if result.says_expected is not None]
    graded = [result.is_right for result in results if result.is_right is not None]
    f1 = [result.f1 for result in results if result.f1 is not None]
    right = graded or said
    is_answered = any(result.correct is not None for result in results)
    measures: tuple[tuple[Measure, Sequence[object]], ...] = (
        ("answers" if is_answered else "preference", graded),
        ("verbatim", said),
        ("loss", losses),
    )
    measure, of = next((found for found in measures if found[1]), (None, None))
    return SliceScore(
        records=len(results),
        loss=_mean(losses),
        verbatim=_mean([float(value) for value in said]),
        accuracy=_mean([float(value) for value in graded]),
        f1=_mean(f1),
        answered=sum(result.correct is not None for result in results),
        interval=wilson(sum(right), len(right), confidence),
        measure=measure,
        measured=None if of is None else len(of),
        tokens_per_second=_speed(results),
    )


def results_file(folder: Path, role: ModelRole, slice_id: str) -> Path:
    """Return where the results of a model on a slice lie, in a version or a run's test folder."""
    return folder / role / f"{slice_id}.jsonl"


def write_results(path: Path, settings: Settings, results: Sequence[ItemResult]) -> None:
    """Write results so that the file is there whole or not at all."""
    lines: list[dict[str, Any]] = [{"settings": settings.model_dump(mode="json")}]
    lines += [result.model_dump(mode="json", exclude_none=True) for result in results]
    durable.make_folder(path.parent)
    durable.write_bytes(path, b"".join(orjson.dumps(line) + b"\n" for line in lines))


def read_results(path: Path, settings: Settings | None = None) -> list[ItemResult]:
    """Return stored results; none when there are none, or when they were got under other settings.

    Raises IntegrityError when the file is not one of results.
    """
    if not path.is_file():
        return []
    try:
        head, *lines = (orjson.loads(line) for line in path.read_bytes().splitlines())
        stored = Settings.model_validate(head["settings"])
        found = [ItemResult.model_validate(line) for line in lines]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise IntegrityError(f"{path}: not a file of results: {error}") from error
    return found if settings is None or settings == stored else []


def settings_of(path: Path) -> Settings | None:
    """Return the settings that stored results were got under; None when there are none.

    Raises IntegrityError when the file is not one of results.
    """
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as lines:
            return Settings.model_validate(orjson.loads(next(lines, b""))["settings"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise IntegrityError(f"{path}: not a file of results: {error}") from error


def read_report(folder: Path) -> VersionReport | None:
    """Return the report in a version's folder; None for a version that was never tested so.

    Raises IntegrityError when it is damaged.
    """
    path = folder / REPORT
    if not path.is_file():
        return None
    try:
        return VersionReport.model_validate(durable.read_json(path))
    except ValidationError as error:
        raise IntegrityError(f"{path}: not the report of a version's test: {error}") from error


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _speed(results: Sequence[ItemResult]) -> float | None:
    """Return generated tokens a second; those of one batch share its time."""
    timed = [found for found in results if found.seconds and found.answer_tokens is not None]
    batches = {found.seconds for found in timed if found.seconds is not None}
    tokens = sum(found.answer_tokens or 0 for found in timed)
    return tokens / math.fsum(batches) if batches else None
