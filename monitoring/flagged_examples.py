"""status/flagged_examples.json: held-out examples that a person may want to look at.

One entry an example, with the newest answer to it, at most `MOST` of them. Only the daemon writes the file;
that it cannot be written or read is logged and stops nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from errors import IntegrityError
from monitoring.events import ExampleEvent, now

logger = logging.getLogger(__name__)

Reason = Literal["mismatch", "high_loss", "error", "manual"]

MOST = 1000
HIGH_LOSS = 3.0
"""Nats a token above which an expected answer surprises the model."""
SHOWN_CHARACTERS = 4000
"""Longer texts are cut in the file."""


class FlaggedExample(BaseModel):
    """One example, why it is flagged, and the newest answer to it."""

    model_config = ConfigDict(frozen=True)

    example_id: str
    """Hash of what was asked and expected; two examples with the same are one."""
    reasons: tuple[Reason, ...]
    job_id: str | None
    current_file: str | None
    step: int
    system_prompt: str | None
    prompt: str
    golden_answer: str
    model_answer: str
    loss: float | None
    error: str | None
    times: int = 1
    """How often an answer to it was flagged."""
    first_flagged_at: datetime
    flagged_at: datetime


class FlaggedExamples:
    """Keeps the file; one at a time, in the daemon."""

    def __init__(self, path: Path, most: int = MOST) -> None:
        """Read what an earlier daemon has flagged; a damaged file is put aside under another name."""
        self._path = path
        self._most = most
        self._has_changed = self._cannot_write = False
        self._examples = {example.example_id: example for example in _read(path)}

    @property
    def examples(self) -> tuple[FlaggedExample, ...]:
        """All of them, the one flagged longest ago first."""
        return tuple(self._examples.values())

    def observe(self, event: ExampleEvent, job_id: str | None, file: str | None) -> None:
        """Flag an answer that is wrong, was not expected at all, or could not be given."""
        reasons = _reasons(event)
        if reasons:
            self._flag(event, reasons, job_id, file)

    def flag(self, event: ExampleEvent, job_id: str | None = None, file: str | None = None) -> None:
        """Flag an answer because a person says so, whatever it is like."""
        self._flag(event, ("manual", *_reasons(event)), job_id, file)

    def save(self) -> None:
        """Write the file if anything has changed; a full disk is logged once and tried again."""
        if not self._has_changed:
            return
        document = {
            "schema_version": 1,
            "examples": [example.model_dump(mode="python") for example in self.examples],
        }
        try:
            durable.write_json(self._path, document)
        except OSError as error:
            if not self._cannot_write:
                logger.warning("Cannot write %s: %s", self._path, error.strerror)
            self._cannot_write = True
        else:
            self._has_changed = self._cannot_write = False

    def _flag(
        self, event: ExampleEvent, reasons: Sequence[Reason], job_id: str | None, file: str | None
    ) -> None:
        key, at = _example_id(event), now()
        before = self._examples.pop(key, None)
        if before is not None and "manual" in before.reasons and "manual" not in reasons:
            reasons = ("manual", *reasons)
        self._examples[key] = FlaggedExample(
            example_id=key,
            reasons=tuple(reasons),
            job_id=job_id,
            current_file=file,
            step=event.step,
            system_prompt=None if event.system_prompt is None else event.system_prompt[:SHOWN_CHARACTERS],
            prompt=event.prompt[:SHOWN_CHARACTERS],
            golden_answer=event.golden_answer[:SHOWN_CHARACTERS],
            model_answer=event.model_answer[:SHOWN_CHARACTERS],
            loss=event.loss if event.loss is not None and math.isfinite(event.loss) else None,
            error=event.error,
            times=1 if before is None else before.times + 1,
            first_flagged_at=at if before is None else before.first_flagged_at,
            flagged_at=at,
        )
        if len(self._examples) > self._most:
            del self._examples[self._least_wanted()]
        self._has_changed = True

    def _least_wanted(self) -> str:
        """Return the oldest one that no person has flagged, or the oldest of all."""
        by_machine = (key for key, one in self._examples.items() if "manual" not in one.reasons)
        return next(by_machine, next(iter(self._examples)))


def _reasons(event: ExampleEvent) -> tuple[Reason, ...]:
    found: list[Reason] = []
    if event.error is not None:
        found.append("error")
    elif not event.answer_matches:
        found.append("mismatch")
    # Written so that a loss that is not a number is a high one.
    if event.loss is not None and not event.loss <= HIGH_LOSS:
        found.append("high_loss")
    return tuple(found)


def _example_id(event: ExampleEvent) -> str:
    asked = "\0".join((event.system_prompt or "", event.prompt, event.golden_answer))
    return blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _read(path: Path) -> list[FlaggedExample]:
    if not path.exists():
        return []
    try:
        stored = durable.read_json(path)
        return [FlaggedExample.model_validate(example) for example in stored["examples"]]
    except (IntegrityError, ValidationError, KeyError, TypeError) as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        logger.warning("Put %s aside as %s and began a new one: %s", path, aside.name, error)
        return []
