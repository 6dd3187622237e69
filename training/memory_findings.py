"""models/memory_findings.json: how many records at once the GPU's memory held, for later runs to begin with.

A finding belongs to a model, a length, a device and the settings that decide how much memory a record takes;
with any of them changed it is another one. It is a measurement: lost or damaged, it is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from config import Paths
from errors import IntegrityError

logger = logging.getLogger(__name__)

Purpose = Literal["training", "evaluation"]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What decides how many records fit."""

    purpose: Purpose
    base_sha256: str
    device: str
    kind: str
    """Of the records: a preference pair takes at least twice as much as a chat."""
    length_bucket: int
    """Longest sequence in tokens, rounded up to a power of two."""
    lora_r: int
    precision: str
    load_in_4bit: bool
    gradient_checkpointing: bool


class Finding(BaseModel):
    """So many records fit where `configured` did not."""

    model_config = ConfigDict(frozen=True)

    configured: int
    fitting: int


class _Document(BaseModel):
    schema_version: int = 1
    findings: dict[str, Finding] = {}


class MemoryFindings:
    """All findings of a base folder; written by the one worker that holds the lock."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.memory_findings

    def size_for(self, circumstances: Circumstances, configured: int) -> int:
        """Return how many records to begin with; more than was configured then is tried anew."""
        finding = self._read().findings.get(_key(circumstances))
        if finding is None or configured > finding.configured:
            return configured
        return min(configured, finding.fitting)

    def remember(self, circumstances: Circumstances, finding: Finding) -> None:
        """Write a finding durably; a full disk costs the finding and not the run."""
        document = self._read()
        findings = {**document.findings, _key(circumstances): finding}
        try:
            durable.write_json(self._path, {**document.model_dump(), "findings": _dump(findings)})
        except OSError as error:
            logger.warning("Could not remember how much memory held: %s", error)

    def _read(self) -> _Document:
        if not self._path.exists():
            return _Document()
        try:
            return _Document.model_validate(durable.read_json(self._path))
        except (IntegrityError, ValidationError) as error:
            logger.warning(
                "Ignored a damaged %s, what it said is found out again: %s", self._path.name, error
            )
            return _Document()


class RunMemory:
    """What is known, and found out, about memory in one run."""

    def __init__(
        self,
        findings: MemoryFindings,
        circumstances: Mapping[Purpose, Circumstances],
        configured: Mapping[Purpose, int],
    ) -> None:
        self._findings = findings
        self._circumstances = circumstances
        self._configured = configured

    def size_for(self, purpose: Purpose) -> int:
        """Return how many records in a pass to begin with."""
        return self._findings.size_for(self._circumstances[purpose], self._configured[purpose])

    def remember(self, purpose: Purpose, size: int) -> None:
        """Keep for later runs that `size` records are to be tried, since more did not fit."""
        finding = Finding(configured=self._configured[purpose], fitting=size)
        self._findings.remember(self._circumstances[purpose], finding)

    def notes(self) -> list[str]:
        """Say where fewer records are passed at once than configured."""
        return [
            f"memory was short in an earlier run like this: {self.size_for(purpose)} records in one pass of "
            f"{purpose} instead of {configured}; what is learned stays the same"
            for purpose, configured in self._configured.items()
            if self.size_for(purpose) < configured
        ]


def length_bucket(tokens: int) -> int:
    """Return `tokens` rounded up to a power of two."""
    return 1 << max(0, tokens - 1).bit_length()


def _key(circumstances: Circumstances) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(circumstances).items())


def _dump(findings: dict[str, Finding]) -> dict[str, dict[str, int]]:
    return {key: finding.model_dump() for key, finding in findings.items()}
