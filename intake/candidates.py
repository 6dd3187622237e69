"""The records of one file in their normal form, and what the file as a whole turns out to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from errors import FileRefused, RecordRefused
from intake import reading
from intake.display import printable
from intake.formats import Detection, Format, Kind, Record, detect_format, kind_of, normalise, unused_keys
from intake.raw_records import BadRecord, RawRecord
from intake.strict_json import RECORD

_NAMED_KEYS = 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """One record on its way: what was read, and either its normal form or why there is none."""

    source: RawRecord | BadRecord
    record: Record | None = None
    content: bytes = b""
    """The JSON of `Record.content`."""
    problem: RecordRefused | None = None


class CandidateReader:
    """Reads a file once. The first usable record decides the kind of all; other formats of it may join.

    What is known of the file (`container`, `kind`, `detection`, `damage` …) is complete when `read` ends.
    """

    def __init__(self, path: Path, max_record_bytes: int, max_bytes: int, *, supports_tools: bool) -> None:
        self._path = path
        self._limits = (max_record_bytes, max_bytes)
        self._supports_tools = supports_tools
        self._unused: Counter[str] = Counter()
        self._unanswered = 0
        self._blank_lines = 0
        self.container: reading.Container | None = None
        self.detection: Detection | None = None
        self.detected_at = ""
        """The record that decided the format, for instance ``line 1``."""
        self.kind: Kind | None = None
        self.formats: Counter[Format] = Counter()
        self.damage: str | None = None
        """Why the file cannot be read, or not to its end."""

    @property
    def unit(self) -> str:
        """What a record's number counts: line, element or row."""
        return reading.UNITS[self.container] if self.container else "record"

    def read(self) -> Iterator[Candidate]:
        """Yield every record; a damaged file ends where the damage is."""
        count = line = 0
        try:
            self.container = reading.identify(self._path)
            for source in reading.read_records(self._path, self.container, *self._limits):
                count, line = count + 1, source.line
                yield self._normalise(source)
        except FileRefused as damage:
            self.damage = str(damage)
        self._blank_lines = line - count

    def notes(self) -> Iterator[str]:
        """Yield what is not wrong with the file but worth knowing."""
        if self.container == "jsonl" and self._path.suffix.lower() == ".json":
            yield "the name ends in .json, but the file is not one array: it was read as JSON lines"
        if len(self.formats) > 1:
            counts = ", ".join(f"{count:,} {format}" for format, count in self.formats.most_common())
            yield f"the file mixes formats of one kind: {counts}"
        for key, count in sorted(self._unused.items()):
            yield f"the key '{printable(key)}' is not used ({count:,} records)"
        if self._unanswered:
            yield f"the last turn is not the assistant's and is not trained ({self._unanswered:,} records)"
        if self._blank_lines:
            yield f"blank lines were passed over ({self._blank_lines:,})"

    def _normalise(self, source: RawRecord | BadRecord) -> Candidate:
        if isinstance(source, BadRecord):
            return Candidate(source, problem=source.problem)
        try:
            record = self._normalise_value(source)
        except RecordRefused as problem:
            return Candidate(source, problem=problem)
        return Candidate(source, record, orjson.dumps(record.content()))

    def _normalise_value(self, source: RawRecord) -> Record:
        detection = detect_format(source.value)
        kind = kind_of(detection.format)
        if self.kind not in (None, kind):
            raise RecordRefused(
                RECORD,
                f"a record of the format {detection.format} ({kind})",
                f"{self.kind} records, like the first one",
                "put it into a file of its own",
            )
        record = normalise(source.value, detection.format, source.line)
        if kind == "chat" and not self._supports_tools:
            _refuse_tools(record)
        if self.detection is None:
            self.detection, self.kind = detection, kind
            self.detected_at = f"{self.unit} {source.line}"
        self._take_note(source, record, detection.format)
        return record

    def _take_note(self, source: RawRecord, record: Record, format: Format) -> None:
        self.formats[format] += 1
        for key in unused_keys(source.value, format):
            if key in self._unused or len(self._unused) < _NAMED_KEYS:
                self._unused[key] += 1
        if record.kind == "chat" and record.messages[-1]["role"] != "assistant":
            self._unanswered += 1


def _refuse_tools(record: Record) -> None:
    """Refuse tools that the chat template would drop in silence."""
    for index, message in enumerate(record.messages):
        if message["role"] == "tool" or "tool_calls" in message:
            raise _no_place_for(f"messages[{index}]", "a tool call or its result")
    if record.tools:
        raise _no_place_for("tools", "tools")


def _no_place_for(field: str, found: str) -> RecordRefused:
    expected = "none: the chat template of this base model has no place for tools"
    remedy = "choose a base model whose template has, or leave the tools out"
    return RecordRefused(field, found, expected, remedy)
