"""The files of suite runs: ``models/evaluations/<model>/<suite>-<identity>.jsonl``, a header, then results.

A line is written when an item was answered, so that a run goes on where it was ended. The identity comes of
all that answers depend on, so that results of other settings lie in another file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

import durable
from errors import IntegrityError
from evaluation.items import Item, ItemResult

SCHEMA = 1


class SuiteHeader(BaseModel):
    """What was asked, of whom, and how: the first line of a file."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA
    model: str
    """A version's name, or ``base-`` and the start of the hash of its weights."""
    model_sha256: str
    """Of the version's manifest, or of the base weights."""
    tokenizer_sha256: str
    suite: str
    title: str
    suite_sha256: str
    items: int
    """All that the suite has."""
    precision: str
    load_in_4bit: bool
    max_new_tokens: int
    """No answer may be longer; most may not even be so long: see `training.suite_runs.answer_limit`."""
    max_generation_seconds: float

    @property
    def identity(self) -> str:
        """One hash of everything above."""
        return hashlib.sha256(orjson.dumps(self.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def asked(self) -> str:
        """The same of all but the model: results of two models under it compare."""
        fields = self.model_dump(exclude={"model", "model_sha256"})
        return hashlib.sha256(orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def file_name(self) -> str:
        return f"{safe_name(self.suite)}-{self.identity[:12]}.jsonl"


def safe_name(name: str) -> str:
    """Return a name with which a file's may begin."""
    return re.sub(r"[^\w.-]+", "_", name)[:80]


@dataclass(frozen=True)
class SuiteRecords:
    """One file as it was read."""

    header: SuiteHeader
    results: dict[str, ItemResult]
    """By item."""
    has_torn_end: bool


def record_files(evaluations: Path) -> list[Path]:
    """Return the files of all suite runs, by name."""
    return sorted(evaluations.glob("*/*.jsonl"))


def read_records(file: Path) -> SuiteRecords:
    """Read one file; half a line at its end, which a power cut left, counts as none.

    Raises IntegrityError when the file is damaged in another way.
    """
    data = file.read_bytes()
    whole, _, rest = data.rpartition(b"\n")
    try:
        first, *lines = whole.splitlines() or [b""]
        header = SuiteHeader.model_validate_json(first)
        found = [ItemResult.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise IntegrityError(
            f"{file}: not the results of a suite ({error.errors(include_url=False)[0]['msg']}); the file is "
            "damaged, remove it and run the suite again"
        ) from error
    return SuiteRecords(header, {result.item_id: result for result in found}, bool(rest))


class RecordKeeper:
    """Appends results to the file of one run; of two results of an item the later one counts."""

    def __init__(self, evaluations: Path, header: SuiteHeader) -> None:
        self.file = evaluations / header.model / header.file_name
        self._header = header
        self.results: dict[str, ItemResult] = {}
        if self.file.exists():
            records = read_records(self.file)
            self.results = records.results
            if records.has_torn_end:
                self._rewrite()

    def has_answered(self, item: Item) -> bool:
        """Tell whether there is an answer to an item that was judged."""
        result = self.results.get(item.item_id)
        return result is not None and result.correct is not None

    def add(self, results: Sequence[ItemResult]) -> None:
        """Write some results, the header first where there is no file yet."""
        if not self.file.exists():
            self._rewrite()
        for result in results:
            durable.append_line(self.file, result.model_dump_json().encode())
            self.results[result.item_id] = result

    def _rewrite(self) -> None:
        durable.make_folder(self.file.parent)
        durable.write_bytes(self.file, b"".join(line + b"\n" for line in self._lines()))

    def _lines(self) -> Iterator[bytes]:
        yield self._header.model_dump_json().encode()
        yield from (result.model_dump_json().encode() for result in self.results.values())
