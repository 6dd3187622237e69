"""The report card of a file: what was found, why, and what to do; JSON for programs, text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

import durable
from errors import RecordRefused
from intake.formats import Format, Kind
from intake.reading import UNITS, Container
from intake.token_histogram import HistogramBin, TokenSummary

REFUSALS_IN_TEXT = 20
REFUSALS_IN_REPORT = 10_000
WIDTH = 96
INDENT = 9
BAR_WIDTH = 48

_CONTAINER_WORDS: dict[Container, str] = {
    "jsonl": "JSON lines",
    "json": "one JSON array",
    "jsonl.gz": "JSON lines, packed by gzip",
    "csv": "CSV",
    "parquet": "Parquet",
}
_KIND_WORDS: dict[Kind, str] = {
    "chat": "conversations",
    "text": "plain texts",
    "preference": "preference pairs",
}
_EXCESS_WORDS = {
    "refuse": "refused",
    "drop": "left out",
    "truncate": "cut at the limit",
    "split": "split at the limit",
}


class Document(BaseModel):
    """A part of the report; frozen."""

    model_config = ConfigDict(frozen=True)


class Refusal(Document):
    """Why one record is refused, and what a person can do."""

    line: int
    field: str
    found: str
    expected: str
    remedy: str

    @classmethod
    def of(cls, line: int, problem: RecordRefused) -> Refusal:
        return cls(
            line=line,
            field=problem.field,
            found=problem.found,
            expected=problem.expected,
            remedy=problem.remedy,
        )


class Withheld(Document):
    """A record that is not trained because it nearly is one that is held out."""

    line: int
    held_out_by: str | None
    """The job whose file that one came from; None for this file."""
    held_out_line: int
    similarity: float
    """Share of their words that both have, rare ones counting more."""


class Plan(Document):
    """What training this file will be."""

    records: int
    rows: int
    """Sequences an epoch; more than `records` when long records are split."""
    epochs: int
    steps_per_epoch: int
    total_steps: int
    tokens_per_epoch: int
    """Of this file."""
    replayed: dict[str, int] = {}
    """By job: records of earlier files that each epoch trains again."""
    estimated_seconds: float | None = None
    """None until the speed of this model on this machine is known."""
    test_share: float = 0.0
    """Largest share of the training time that testing the new version takes."""


class Limits(Document):
    """The settings that decided."""

    max_length: int
    excess_length: str
    max_bad_fraction: float
    near_copy_similarity: float | None = None


class ReportCard(Document):
    """The verdict on a whole file and everything behind it.

    Each record is counted once: accepted, refused, a duplicate, dropped, held out, or withheld.
    """

    schema_version: int = 1
    name: str
    """The file's name, escaped for display."""
    sha256: str
    size_bytes: int
    container: Container | None
    usable: bool
    reason: str | None
    """Why the file is not usable."""
    format: Format | None = None
    format_reason: str | None = None
    formats: dict[Format, int] = {}
    """Records that could be read, by format."""
    kind: Kind | None = None
    records_total: int = 0
    accepted: int = 0
    """Records that will be trained."""
    refused: int = 0
    duplicates: int = 0
    dropped: int = 0
    """Records left out because they are too long (data.excess_length: drop)."""
    held_out: int = 0
    withheld: int = 0
    """Records that are not trained because each nearly is a held-out one of this or an earlier file."""
    over_length: int = 0
    """Records above data.max_length, whatever became of them."""
    tokens: TokenSummary = TokenSummary()
    refusals: list[Refusal] = []
    """The first refusals; ``refused.jsonl`` has all."""
    withheld_records: list[Withheld] = []
    """The first records withheld."""
    notes: list[str] = []
    plan: Plan | None = None
    limits: Limits

    @property
    def unit(self) -> str:
        """What a record's number counts: line, element or row."""
        return UNITS[self.container] if self.container else "record"

    def to_json(self) -> str:
        """Write the report for programs, as ``report.json`` holds it."""
        return durable.to_json(self.model_dump(mode="json")).decode("utf-8")

    def to_text(self) -> str:
        """Write the report for people."""
        parts = (_head, _found, _counts, _tokens, _plan, _notes, _withheld, _refusals)
        blocks = ["\n".join(part(self)) for part in parts]
        return "\n\n".join(block for block in blocks if block) + "\n"


def _head(card: ReportCard) -> Iterator[str]:
    verdict = "USABLE" if card.usable else "REFUSED"
    title = f"Report card of {card.name}"
    yield f"{title}{verdict:>{max(len(verdict) + 2, WIDTH - len(title))}}"
    yield "─" * WIDTH
    if card.reason is not None:
        yield from textwrap.wrap(card.reason[0].upper() + card.reason[1:] + ".", WIDTH)


def _found(card: ReportCard) -> Iterator[str]:
    what = _CONTAINER_WORDS[card.container] if card.container else "not to be read"
    yield _row("File", f"{what}, {card.size_bytes:,} bytes, sha256 {card.sha256[:16]}…")
    if card.format is not None and card.kind is not None:
        yield _row("Format", f"{card.format} ({_KIND_WORDS[card.kind]}): {card.format_reason}")


def _counts(card: ReportCard) -> Iterator[str]:
    if not card.records_total:
        return
    share = f"{card.refused / card.records_total:.1%}, limit {card.limits.max_bad_fraction:.1%}"
    yield _row("Records", f"{card.records_total:>9,}  in the file")
    yield _row("", f"{card.accepted:>9,}  to train")
    for count, words in (
        (card.held_out, "held out for evaluation, never trained"),
        (card.withheld, "withheld: nearly copies of held-out records"),
        (card.duplicates, "duplicates of an earlier record, trained once"),
        (card.dropped, f"left out: longer than {card.limits.max_length:,} tokens"),
        (card.refused, f"refused ({share})"),
    ):
        if count:
            yield _row("", f"{count:>9,}  {words}")


def _tokens(card: ReportCard) -> Iterator[str]:
    tokens = card.tokens
    if not tokens.histogram:
        return
    share = f"{tokens.assistant:,} ({tokens.assistant / tokens.total:.0%})"
    trained = "all of them trained" if card.kind == "text" else f"of which {share} are the answers to learn"
    yield _row("Tokens", f"{tokens.total:,}, {trained}")
    spread = f"half of them up to {tokens.median:,}, 95 % up to {tokens.p95:,}"
    yield _row("", f"a record has {tokens.min:,} to {tokens.max:,}, {spread}")
    highest = max(entry.records for entry in tokens.histogram)
    widest = max(len(_range_of(entry)) for entry in tokens.histogram)
    for entry in tokens.histogram:
        yield _row("", f"{_range_of(entry):>{widest}}  {_bar(entry.records / highest)} {entry.records:,}")
    longer = f"{card.over_length:,} longer, {_EXCESS_WORDS[card.limits.excess_length]}"
    verdict = longer if card.over_length else "no record is longer"
    yield _row("", f"limit {card.limits.max_length:,} (data.max_length): {verdict}")


def _plan(card: ReportCard) -> Iterator[str]:
    plan = card.plan
    if plan is None:
        return
    epochs = f"{plan.epochs} epochs" if plan.epochs != 1 else "1 epoch"
    steps = f"{plan.total_steps:,} steps: {epochs} of {plan.steps_per_epoch:,}"
    seconds = plan.estimated_seconds
    time = "time not known yet" if seconds is None else f"about {_duration(seconds)}"
    yield _row("Plan", f"{steps}, each of {plan.rows:,} rows and {plan.tokens_per_epoch:,} tokens; {time}")
    if plan.test_share:
        at_most = "" if seconds is None else f", up to {_duration(seconds * plan.test_share)}"
        yield _row(
            "", f"then a test of what was learned, at most {plan.test_share:.0%} of that time{at_most},"
        )
        yield _row("", "or, after a short training, as long as the fewest records that tell anything take")
    if plan.replayed:
        files = f"{len(plan.replayed):,} earlier files" if len(plan.replayed) > 1 else "an earlier file"
        yield _row(
            "", f"and {sum(plan.replayed.values()):,} records of {files}, so that they are not forgotten"
        )


def _notes(card: ReportCard) -> Iterator[str]:
    for index, note in enumerate(card.notes):
        label = "" if index else "Notes"
        yield from _wrapped(label, note, INDENT)


def _withheld(card: ReportCard) -> Iterator[str]:
    if not card.withheld:
        return
    shown = card.withheld_records[:REFUSALS_IN_TEXT]
    more = f", the first {len(shown)} of {card.withheld:,}" if card.withheld > len(shown) else ""
    yield f"Withheld records{more}: each nearly is one that is held out (data.near_copy_similarity)"
    for record in shown:
        where = f" of job {record.held_out_by}" if record.held_out_by else ""
        yield (
            f"  {card.unit} {record.line:,} shares {record.similarity:.0%} with held-out "
            f"{card.unit} {record.held_out_line:,}{where}"
        )


def _refusals(card: ReportCard) -> Iterator[str]:
    if not card.refusals:
        return
    shown = card.refusals[:REFUSALS_IN_TEXT]
    more = f", the first {len(shown)} of {card.refused:,}" if card.refused > len(shown) else ""
    yield f"Refused records{more}"
    for refusal in shown:
        yield f"  {card.unit} {refusal.line:,}, {refusal.field}"
        yield from _wrapped("      found", refusal.found, 16)
        yield from _wrapped("      expected", refusal.expected, 16)
        yield from _wrapped("      do", refusal.remedy, 16)


def _row(label: str, text: str) -> str:
    return f"{label:<{INDENT}}{text}".rstrip()


def _wrapped(label: str, text: str, indent: int) -> list[str]:
    first = f"{label:<{indent}}"
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * indent)


def _range_of(entry: HistogramBin) -> str:
    last = entry.end - 1
    return f"{entry.start:,}–{last:,}" if last > entry.start else f"{last:,}"


def _bar(share: float) -> str:
    """Draw a bar to an eighth of a character; what is there at all can be seen."""
    eighths = max(round(share * BAR_WIDTH * 8), 1 if share else 0)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
