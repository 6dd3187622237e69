"""Every record of a file is read, brought into its normal form, tokenised and judged; in a stream.

Memory does not grow with the file. What is judged here is whatever needs more than the record itself: the
rest of the file, the tokens, the configuration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from chat_template import ChatTemplate
from config import Config, DataConfig, RunPaths, TrainConfig
from durable import sha256_file
from errors import FileRefused, RecordRefused
from intake import reading
from intake.display import printable
from intake.formats import (
    Detection,
    Format,
    Kind,
    Record,
    content_key,
    detect_format,
    kind_of,
    normalise,
    unused_keys,
)
from intake.measuring import Candidate, Measure, measure_all
from intake.outputs import RecordFiles
from intake.raw_records import BadRecord, RawRecord
from intake.report import REFUSALS_IN_REPORT, Limits, Plan, Refusal, ReportCard
from intake.selection import Accepted, HeldOutSample, SeenKeys
from intake.strict_json import RECORD
from intake.token_histogram import TokenCounter

_NAMED_KEYS = 20
_NAME_CHARACTERS = 120

Progress = Callable[[int, int, int], None]
"""Told after each batch: bytes of the file read so far, its size, records judged so far."""


@dataclass(frozen=True, slots=True)
class PlanInputs:
    """What has to be known beside the file to foretell its training."""

    batch_records: int
    """Records in one optimizer step."""
    epochs: int
    tokens_per_second: float | None = None
    """Speed of earlier runs with this model on this machine; None when there was none."""

    @classmethod
    def of(cls, config: TrainConfig, tokens_per_second: float | None = None) -> PlanInputs:
        """Take what the configuration says."""
        batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
        return cls(batch, config.num_train_epochs, tokens_per_second)


def check_file(
    path: Path,
    config: DataConfig,
    template: ChatTemplate,
    *,
    seed: int,
    name: str,
    plan: PlanInputs,
    output: RunPaths | None = None,
    held_out_keys: Container[bytes] = frozenset(),
    on_progress: Progress | None = None,
) -> ReportCard:
    """Judge a data file and return its report card; no content makes this raise.

    With `output` the records go to that run's folder as ``train.jsonl``, ``held_out.jsonl`` and
    ``refused.jsonl``, then the report. A record whose key is in `held_out_keys` is never trained. What
    `on_progress` raises ends the check and leaves nothing behind. Raises OSError when the file cannot be
    read.
    """
    with RecordFiles(output) as files, SeenKeys() as seen:
        check = _Check(config, template, files, seen, held_out_keys, seed)
        total_bytes = path.stat().st_size
        for batch, measures in measure_all(check.read(path), template):
            for candidate, measure in zip(batch, measures, strict=True):
                check.judge(candidate, measure)
            if on_progress is not None:
                on_progress(batch[-1].source.done_bytes, total_bytes, check.total)
        card = check.finish(path, name, plan)
        files.publish(card)
    return card


def preview_file(
    path: Path, config: Config, template: ChatTemplate, on_progress: Progress | None = None
) -> ReportCard:
    """Judge a file as a run would, without a run: nothing is written."""
    return check_file(
        path,
        config.data,
        template,
        seed=config.train.seed,
        name=path.name,
        plan=PlanInputs.of(config.train),
        on_progress=on_progress,
    )


class _Check:
    """The judgement of one file in progress."""

    def __init__(
        self,
        config: DataConfig,
        template: ChatTemplate,
        files: RecordFiles,
        seen: SeenKeys,
        held_out_keys: Container[bytes],
        seed: int,
    ) -> None:
        self._config = config
        self._template = template
        self._files = files
        self._seen = seen
        self._held_out_keys = held_out_keys
        self._sample = HeldOutSample(config.held_out_fraction, config.held_out_max_records, seed)
        self._container: reading.Container | None = None
        self._damage: str | None = None
        self._detection: Detection | None = None
        self._format_reason: str | None = None
        self._kind: Kind | None = None
        self._formats: Counter[Format] = Counter()
        self._unused: Counter[str] = Counter()
        self._unanswered = 0
        self._last_line = 0
        self._tokens = TokenCounter()
        self._refusals: list[Refusal] = []
        self.total = self._accepted = self._refused = self._duplicates = 0
        self._dropped = self._held_out = self._over_length = 0
        self._rows = self._planned_tokens = 0

    @property
    def _unit(self) -> str:
        return reading.UNITS[self._container] if self._container else "record"

    def read(self, path: Path) -> Iterator[Candidate]:
        """Yield every record of the file in its normal form; a damaged file ends where the damage is."""
        try:
            self._container = reading.identify(path)
            for source in reading.read_records(path, self._container, self._config.max_line_bytes):
                yield self._normalise(source)
        except FileRefused as damage:
            self._damage = str(damage)

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
        if self._kind not in (None, kind):
            raise RecordRefused(
                RECORD,
                f"a record of the format {detection.format} ({kind})",
                f"{self._kind} records, like the first one",
                "put it into a file of its own",
            )
        record = normalise(source.value, detection.format, source.line)
        self._refuse_tools_without_support(record)
        if self._detection is None:
            self._detection, self._kind = detection, kind
            self._format_reason = f"{self._unit} {source.line}: {detection.why}"
        self._formats[detection.format] += 1
        for key in unused_keys(source.value, detection.format):
            if key in self._unused or len(self._unused) < _NAMED_KEYS:
                self._unused[key] += 1
        self._unanswered += record.kind == "chat" and record.messages[-1]["role"] != "assistant"
        return record

    def _refuse_tools_without_support(self, record: Record) -> None:
        if self._template.supports_tools or record.kind != "chat":
            return
        for index, message in enumerate(record.messages):
            if message["role"] == "tool" or "tool_calls" in message:
                self._raise_no_tools(f"messages[{index}]", "a tool call or its result")
        if record.tools:
            self._raise_no_tools("tools", "tools")

    def _raise_no_tools(self, field: str, found: str) -> None:
        raise RecordRefused(
            field,
            found,
            "none: the chat template of this base model has no place for tools",
            "choose a base model whose template has, or leave the tools out",
        )

    def judge(self, candidate: Candidate, measure: Measure | RecordRefused) -> None:
        """Decide what becomes of one record and count it once."""
        self.total += 1
        self._last_line = candidate.source.line
        try:
            if isinstance(measure, RecordRefused):
                raise measure
            self._tokens.add(measure.length, measure.total, measure.trained)
            accepted = self._fit(candidate, measure)
        except RecordRefused as problem:
            self._refuse(candidate.source, problem)
            return
        if accepted is None:
            self._dropped += 1
            return
        key = content_key(candidate.content)
        if not self._seen.add(key):
            self._duplicates += 1
        elif key in self._held_out_keys:
            self._hold_out(accepted)
        elif measure.length > self._config.max_length:
            self._train(accepted)
        elif (to_train := self._sample.offer(key, accepted)) is not None:
            self._train(to_train)

    def _fit(self, candidate: Candidate, measure: Measure) -> Accepted | None:
        """Apply the length limit; return None for a record that is left out."""
        limit = self._config.max_length
        rows, tokens = 1, measure.total
        if measure.length > limit:
            self._over_length += 1
            match self._config.excess_length:
                case "drop":
                    return None
                case "truncate" if measure.first_trained < limit:
                    tokens = min(measure.total, limit * (2 if self._kind == "preference" else 1))
                case "split" if self._kind != "preference":
                    rows = math.ceil(measure.length / limit)
                case _:
                    self._raise_too_long(measure)
        stored = b'{"line":%d,%b\n' % (candidate.source.line, candidate.content[1:])
        return Accepted(candidate.source.line, stored, rows, tokens)

    def _raise_too_long(self, measure: Measure) -> None:
        found = f"{measure.length:,} tokens"
        expected = f"at most {self._config.max_length:,} (data.max_length)"
        remedy = "shorten it, raise data.max_length, or choose another data.excess_length"
        if self._config.excess_length == "truncate":
            found += f", the answer beginning at token {measure.first_trained + 1:,}"
            expected += ", or an answer that begins before the cut"
        if self._config.excess_length == "split":
            expected += ": a preference pair cannot be split"
        raise RecordRefused(RECORD, found, expected, remedy)

    def _refuse(self, source: RawRecord | BadRecord, problem: RecordRefused) -> None:
        self._refused += 1
        refusal = Refusal.of(source.line, problem)
        if len(self._refusals) < REFUSALS_IN_REPORT:
            self._refusals.append(refusal)
        self._files.refuse(refusal, source)

    def _hold_out(self, record: Accepted) -> None:
        self._held_out += 1
        self._files.hold_out(record.stored)

    def _train(self, record: Accepted) -> None:
        self._accepted += 1
        self._rows += record.rows
        self._planned_tokens += record.tokens
        self._files.train(record.stored)

    def finish(self, path: Path, name: str, plan: PlanInputs) -> ReportCard:
        """Settle the held-out records and write the verdict."""
        is_large_enough = self._accepted + len(self._sample) >= self._config.held_out_min_records
        for record in self._sample.take_all():
            (self._hold_out if is_large_enough else self._train)(record)
        reason = self._reason()
        return ReportCard(
            name=printable(name, _NAME_CHARACTERS),
            sha256=sha256_file(path),
            size_bytes=path.stat().st_size,
            container=self._container,
            usable=reason is None,
            reason=reason,
            format=self._detection.format if self._detection else None,
            format_reason=self._format_reason,
            formats=dict(self._formats),
            kind=self._kind,
            records_total=self.total,
            accepted=self._accepted,
            refused=self._refused,
            duplicates=self._duplicates,
            dropped=self._dropped,
            held_out=self._held_out,
            over_length=self._over_length,
            tokens=self._tokens.summary(),
            refusals=self._refusals,
            notes=list(self._notes(path)),
            plan=self._plan(plan) if reason is None else None,
            limits=Limits(
                max_length=self._config.max_length,
                excess_length=self._config.excess_length,
                max_bad_fraction=self._config.max_bad_fraction,
            ),
        )

    def _reason(self) -> str | None:
        """Say why the file cannot be trained, or None when it can."""
        if self._damage is not None:
            return self._damage
        if self.total == 0:
            return "there is no record in the file, only blank space; copy it again"
        share = self._refused / self.total
        if share > self._config.max_bad_fraction:
            first = self._refusals[0]
            return (
                f"{self._refused:,} of {self.total:,} records are refused ({share:.1%}), more than "
                f"data.max_bad_fraction allows ({self._config.max_bad_fraction:.1%}); the first is "
                f"{self._unit} {first.line}, {first.field}: found {first.found}, "
                f"expected {first.expected}; {first.remedy}"
            )
        if self._accepted == 0:
            return (
                f"no record is left to train on: {self._refused:,} refused, {self._duplicates:,} duplicates, "
                f"{self._dropped:,} too long, {self._held_out:,} held out"
            )
        return None

    def _plan(self, inputs: PlanInputs) -> Plan:
        steps = math.ceil(self._rows / inputs.batch_records)
        speed = inputs.tokens_per_second
        return Plan(
            records=self._accepted,
            rows=self._rows,
            epochs=inputs.epochs,
            steps_per_epoch=steps,
            total_steps=steps * inputs.epochs,
            tokens_per_epoch=self._planned_tokens,
            estimated_seconds=self._planned_tokens * inputs.epochs / speed if speed else None,
        )

    def _notes(self, path: Path) -> Iterator[str]:
        """Yield what is not wrong but worth knowing."""
        if self._container == "jsonl" and path.name.lower().endswith(".json"):
            yield "the name ends in .json, but the file is not one array: it was read as JSON lines"
        if len(self._formats) > 1:
            counts = ", ".join(f"{count:,} {format}" for format, count in self._formats.most_common())
            yield f"the file mixes formats of one kind: {counts}"
        for key, count in sorted(self._unused.items()):
            yield f"the key '{printable(key)}' is not used ({count:,} records)"
        if self._unanswered:
            yield f"the last turn is not the assistant's and is not trained ({self._unanswered:,} records)"
        blank = self._last_line - self.total
        if self._container in ("jsonl", "jsonl.gz") and blank > 0:
            yield f"blank lines were passed over ({blank:,})"
        if self._refused > REFUSALS_IN_REPORT:
            yield f"this report lists the first {REFUSALS_IN_REPORT:,} refused records; refused.jsonl has all"
