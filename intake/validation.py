"""Every record of a file is read, brought into its normal form, tokenised and judged; in a stream.

Memory does not grow with the file. What is judged here is whatever needs more than the record itself: the
rest of the file, the tokens, the configuration.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import orjson

from chat_template import ChatTemplate
from config import DataConfig, RunPaths
from durable import sha256_file
from errors import RecordRefused
from evaluation.graders import choose
from intake.candidates import Candidate, CandidateReader
from intake.display import printable
from intake.formats import Kind, Record, content_key
from intake.measuring import Measure, measure_all
from intake.near_copies import Match, NearCopies, line_and_content
from intake.outputs import RecordFiles
from intake.raw_records import BadRecord, RawRecord
from intake.report import REFUSALS_IN_REPORT, Limits, Plan, Refusal, ReportCard, Withheld
from intake.selection import Accepted, HeldOutSample, SeenKeys
from intake.strict_json import RECORD
from intake.token_histogram import TokenCounter

COLLECT_AFTER_OBJECTS = 50_000
SAMPLED_RECORDS = 500
"""So many records of a file tell how common its words are."""
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
    replayed: Callable[[Kind, int], dict[str, int]] = lambda kind, rows: {}
    """Says how many records of which earlier files are mixed into so many rows of a kind, in an epoch."""
    test_share: float = 0.0
    """Largest share of the training time that testing the new version takes."""


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
    held_out_files: Sequence[Path] = (),
    on_progress: Progress | None = None,
) -> ReportCard:
    """Judge a data file and return its report card; no content makes this raise.

    With `output` the records go to that run's folder as ``train.jsonl``, ``held_out.jsonl`` and
    ``refused.jsonl``, then the report. A record whose key is in `held_out_keys` is never trained, and one
    that nearly is a record of `held_out_files`, or a held-out one of this file, is withheld; without
    `output` there is nothing to look through for those. What
    `on_progress` raises ends the check and leaves nothing behind. Raises OSError when the file cannot be
    read.
    """
    total_bytes = path.stat().st_size
    reader = CandidateReader(
        path, config.max_line_bytes, config.max_bytes, supports_tools=template.supports_tools
    )
    with RecordFiles(output) as files, SeenKeys() as seen, _rare_collections():
        judge = _Judge(config, files, seen, held_out_keys, seed)
        with closing(measure_all(reader.read(), template)) as batches:
            for batch, measures in batches:
                for candidate, measure in zip(batch, measures, strict=True):
                    judge.decide(candidate, measure)
                if on_progress is not None:
                    on_progress(batch[-1].source.done_bytes, total_bytes, judge.total)
        judge.settle_held_out()
        judge.withhold_near_copies(held_out_files, template)
        card = _write_card(path, name, config, reader, judge, plan)
        files.publish(card)
    return card


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Let the garbage collector look less often.

    Thousands of records are in hand at any time and hold hardly a cycle; looking through them after every
    700 new objects took a third of the time outside the tokenizer.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


class _Judge:
    """Decides what becomes of each record, and counts."""

    def __init__(
        self,
        config: DataConfig,
        files: RecordFiles,
        seen: SeenKeys,
        held_out_keys: Container[bytes],
        seed: int,
    ) -> None:
        self._config = config
        self._files = files
        self._seen = seen
        self._held_out_keys = held_out_keys
        self._sample = HeldOutSample(config.held_out_fraction, config.held_out_max_records, seed)
        self.tokens = TokenCounter()
        self.refusals: list[Refusal] = []
        self.total = self.accepted = self.refused = self.duplicates = self.dropped = self.held_out = 0
        self.over_length = self.withheld = 0
        self.expected: list[str] = []
        """Answers of held-out records that name no grader."""
        self.own_graders = 0
        self.withheld_records: list[Withheld] = []
        self.rows = 0
        self.planned_tokens = 0

    def decide(self, candidate: Candidate, measure: Measure | RecordRefused) -> None:
        """Decide what becomes of one record and count it once."""
        self.total += 1
        if isinstance(measure, RecordRefused):
            self._refuse(candidate.source, measure)
            return
        self.tokens.add(measure.length, measure.total, measure.trained)
        try:
            accepted = self._fit(candidate, measure)
        except RecordRefused as problem:
            self._refuse(candidate.source, problem)
            return
        if accepted is None:
            self.dropped += 1
            return
        key = content_key(candidate.content)
        if not self._seen.add(key):
            self.duplicates += 1
        elif key in self._held_out_keys:
            self._hold_out(accepted)
        elif measure.length > self._config.max_length:
            self._train(accepted)
        elif (to_train := self._sample.offer(key, accepted)) is not None:
            self._train(to_train)

    def _fit(self, candidate: Candidate, measure: Measure) -> Accepted | None:
        """Apply the length limit; return None for a record that is left out."""
        assert candidate.record is not None
        limit = self._config.max_length
        is_pair = candidate.record.kind == "preference"
        if measure.length > limit:
            self.over_length += 1
            match self._config.excess_length:
                case "drop":
                    return None
                case "truncate" if measure.first_trained < limit:
                    pass
                case "split" if not is_pair:
                    pass
                case _:
                    self._raise_too_long(measure)
        rows, tokens = self._size(measure, is_pair=is_pair)
        grader = candidate.record.grader
        judged = b"" if grader is None else b'"grader":%b,' % orjson.dumps(grader)
        stored = b'{"line":%d,%b%b\n' % (candidate.source.line, judged, candidate.content[1:])
        return Accepted(candidate.source.line, stored, rows, tokens)

    def _size(self, measure: Measure, *, is_pair: bool) -> tuple[int, int]:
        """Return the rows and tokens that a record within the policy becomes."""
        limit = self._config.max_length
        if measure.length <= limit:
            return 1, measure.total
        if self._config.excess_length == "split":
            return math.ceil(measure.length / limit), measure.total
        return 1, min(measure.total, limit * 2 if is_pair else limit)

    def _raise_too_long(self, measure: Measure) -> NoReturn:
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
        self.refused += 1
        refusal = Refusal.of(source.line, problem)
        if len(self.refusals) < REFUSALS_IN_REPORT:
            self.refusals.append(refusal)
        self._files.refuse(refusal, source)

    def _hold_out(self, record: Accepted) -> None:
        self.held_out += 1
        self._files.hold_out(record.stored)
        kept = Record.from_json(orjson.loads(record.stored))
        self.own_graders += kept.grader is not None
        if kept.answer is not None and kept.grader is None:
            self.expected.append(kept.answer)

    def _train(self, record: Accepted) -> None:
        self.accepted += 1
        self.rows += record.rows
        self.planned_tokens += record.tokens
        self._files.train(record.stored)

    def settle_held_out(self) -> None:
        """Hold the sample out, or train it when the file is too small to do without."""
        is_large_enough = self.accepted + len(self._sample) >= self._config.held_out_min_records
        for record in self._sample.take_all():
            (self._hold_out if is_large_enough else self._train)(record)

    def withhold_near_copies(self, held_out_files: Sequence[Path], template: ChatTemplate) -> None:
        """Take the records out again that nearly are held-out ones of this file or of earlier ones."""
        copies = NearCopies(self._config.near_copy_similarity)
        copies.get_to_know(line_and_content(line)[1] for line in self._files.sample_trained(SAMPLED_RECORDS))
        copies.add("", self._files.held_out())
        for file in held_out_files:
            copies.add_file(file)
        if not copies:
            return
        stored: list[bytes] = []
        for line in copies.suspects(self._files.trained()):
            number, content = line_and_content(line)
            if (match := copies.find(content)) is not None:
                stored.append(line)
                self._note_withheld(number, match)
        if stored:
            self._files.leave_out(frozenset(stored).__contains__)
            self._forget(stored, template)

    def _note_withheld(self, line: int, match: Match) -> None:
        self.withheld += 1
        if len(self.withheld_records) < REFUSALS_IN_REPORT:
            self.withheld_records.append(
                Withheld(
                    line=line,
                    held_out_by=match.source or None,
                    held_out_line=match.line,
                    similarity=round(match.similarity, 3),
                )
            )

    def _forget(self, stored: Sequence[bytes], template: ChatTemplate) -> None:
        """Count records out again that were counted as trained."""
        records = [Record.from_json(orjson.loads(line)) for line in stored]
        candidates = [Candidate(RawRecord(record.line, {}, b"", 0), record) for record in records]
        for batch, measures in measure_all(candidates, template):
            for candidate, measure in zip(batch, measures, strict=True):
                assert candidate.record is not None and isinstance(measure, Measure)
                rows, tokens = self._size(measure, is_pair=candidate.record.kind == "preference")
                self.accepted -= 1
                self.rows -= rows
                self.planned_tokens -= tokens


def _write_card(
    path: Path, name: str, config: DataConfig, reader: CandidateReader, judge: _Judge, plan: PlanInputs
) -> ReportCard:
    reason = _reason(config, reader, judge)
    return ReportCard(
        name=printable(name, _NAME_CHARACTERS),
        sha256=sha256_file(path),
        size_bytes=path.stat().st_size,
        container=reader.container,
        usable=reason is None,
        reason=reason,
        format=reader.detection.format if reader.detection else None,
        format_reason=f"{reader.detected_at}: {reader.detection.why}" if reader.detection else None,
        formats=dict(reader.formats),
        kind=reader.kind,
        records_total=judge.total,
        accepted=judge.accepted,
        refused=judge.refused,
        duplicates=judge.duplicates,
        dropped=judge.dropped,
        held_out=judge.held_out,
        withheld=judge.withheld,
        over_length=judge.over_length,
        tokens=judge.tokens.summary(),
        refusals=judge.refusals,
        withheld_records=judge.withheld_records,
        notes=[*reader.notes(), *_note_unlisted(judge), *_note_graders(judge)],
        plan=_make_plan(judge, reader.kind, plan) if reason is None and reader.kind else None,
        limits=Limits(
            max_length=config.max_length,
            excess_length=config.excess_length,
            max_bad_fraction=config.max_bad_fraction,
            near_copy_similarity=config.near_copy_similarity,
        ),
    )


def _note_unlisted(judge: _Judge) -> Iterator[str]:
    if judge.refused > len(judge.refusals):
        yield f"only the first {len(judge.refusals):,} refused records are listed; refused.jsonl has them all"
    if judge.withheld > len(judge.withheld_records):
        yield f"only the first {len(judge.withheld_records):,} withheld records are listed"


def _note_graders(judge: _Judge) -> Iterator[str]:
    if judge.own_graders:
        yield f"{judge.own_graders:,} held-out records are judged by the grader they name"
    if judge.expected:
        spec, why = choose(judge.expected)
        yield f"answers to held-out records are judged by the grader '{spec.name}': {why}"


def _reason(config: DataConfig, reader: CandidateReader, judge: _Judge) -> str | None:
    """Say why the file cannot be trained, or None when it can."""
    if reader.damage is not None:
        return reader.damage
    if judge.total == 0:
        return "there is no record in the file; look whether it was copied whole"
    share = judge.refused / judge.total
    if share > config.max_bad_fraction:
        first = judge.refusals[0]
        return (
            f"{judge.refused:,} of {judge.total:,} records are refused ({share:.1%}), more than "
            f"data.max_bad_fraction allows ({config.max_bad_fraction:.1%}); the first is "
            f"{reader.unit} {first.line}, {first.field}: found {first.found}, expected {first.expected}; "
            f"{first.remedy}"
        )
    if judge.accepted == 0:
        return (
            f"no record is left to train on: {judge.refused:,} refused, {judge.duplicates:,} duplicates, "
            f"{judge.dropped:,} too long, {judge.held_out:,} held out, {judge.withheld:,} nearly copies of "
            "held-out ones; add other records"
        )
    return None


def _make_plan(judge: _Judge, kind: Kind, inputs: PlanInputs) -> Plan:
    replayed = inputs.replayed(kind, judge.rows)
    rows = judge.rows + sum(replayed.values())
    steps = math.ceil(rows / inputs.batch_records)
    # What is replayed is taken to be as long as the file's own records.
    tokens = judge.planned_tokens * inputs.epochs * rows / judge.rows
    speed = inputs.tokens_per_second
    return Plan(
        records=judge.accepted,
        rows=judge.rows,
        epochs=inputs.epochs,
        steps_per_epoch=steps,
        total_steps=steps * inputs.epochs,
        tokens_per_epoch=judge.planned_tokens,
        replayed=replayed,
        estimated_seconds=tokens / speed if speed else None,
        test_share=inputs.test_share,
    )
