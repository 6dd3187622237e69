"""Accepted records become rows of token ids on disk, once for each run and in constant memory.

A chat or text record becomes a row with one sequence, a preference record a row with two (chosen and
rejected). Labels are the token where it is trained and -100 elsewhere. Batches are `training.batches`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar

import durable
from chat_template import IGNORE, ChatTemplate, Encoded
from config import DataConfig
from errors import JobFailed, RecordRefused
from intake.formats import Record

logger = logging.getLogger(__name__)


REPLAY = "replay"
"""The file of records that earlier runs have accepted, under limits that may have been others."""
CHUNK_RECORDS = 256
PROVED_RECORDS = 64
Kind = Literal["chat", "text", "preference"]
Piece = tuple[list[int], list[int]]
"""Token ids and labels of one sequence."""

_SEQUENCES = pa.list_(pa.list_(pa.int32()))
_SCHEMA = pa.schema(
    [("line", pa.int64()), ("length", pa.int32()), ("input_ids", _SEQUENCES), ("labels", _SEQUENCES)]
)


@dataclass(frozen=True)
class TokenFacts:
    """What is in one file of rows."""

    kind: Kind
    records: int
    rows: int
    tokens: int
    trained_tokens: int
    cut_records: int
    lost_records: int


class TokenRows:
    """The rows of one file: random access, memory-mapped."""

    def __init__(self, path: Path, facts: TokenFacts) -> None:
        disable_progress_bar()
        self.dataset: Dataset = Dataset.from_file(str(path)).with_format("numpy")
        self.facts = facts
        self.lengths: np.ndarray[Any, np.dtype[np.int32]] = np.asarray(
            self.dataset.data.column("length").to_numpy(), dtype=np.int32
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def lines(self) -> list[int]:
        """The line of the file that each row comes from."""
        return [int(line) for line in self.dataset["line"]]

    def of_lines(self, lines: Collection[int]) -> TokenRows:
        """Return the rows that come from certain lines of the file, in the same order."""
        numbers = [number for number, line in enumerate(self.lines) if line in lines]
        chosen = copy(self)
        chosen.dataset = self.dataset.select(numbers)
        chosen.lengths = self.lengths[numbers]
        return chosen


def tokenise_run(
    folder: Path,
    files: dict[str, Path],
    template: ChatTemplate,
    template_key: str,
    config: DataConfig,
    on_progress: Callable[[int], None],
) -> dict[str, TokenRows]:
    """Return the token rows of each named file of records, building and sealing `folder` if need be.

    A folder that was sealed for the same records, template (`template_key` is its hash) and limits is used
    as it is. `on_progress` is called with the number of records done. Raises JobFailed when the trained
    tokens of a record do not decode to what its assistant said.
    """
    key = _cache_key(files, template_key, config)
    if not (durable.is_sealed(folder) and durable.read_manifest(folder).get("key") == key):
        if folder.exists():
            durable.remove_tree(folder)
        durable.make_folder(folder)
        facts = {
            name: _tokenise_file(
                *(path, folder / f"{name}.arrow", template),
                config.model_copy(update={"excess_length": "drop"}) if name == REPLAY else config,
                on_progress,
            )
            for name, path in files.items()
        }
        durable.seal_folder(folder, {"key": key, "facts": {name: vars(fact) for name, fact in facts.items()}})
    stored = durable.read_manifest(folder)["facts"]
    return {name: TokenRows(folder / f"{name}.arrow", TokenFacts(**stored[name])) for name in files}


def _cache_key(files: dict[str, Path], template_key: str, config: DataConfig) -> dict[str, Any]:
    return {
        "records": {name: durable.sha256_file(path) for name, path in files.items()},
        "template": template_key,
        "max_length": config.max_length,
        "excess_length": config.excess_length,
    }


def _tokenise_file(
    source: Path,
    destination: Path,
    template: ChatTemplate,
    config: DataConfig,
    on_progress: Callable[[int], None],
) -> TokenFacts:
    counts = dict.fromkeys(("records", "rows", "tokens", "trained_tokens", "cut_records", "lost_records"), 0)
    kind: Kind = "chat"
    with pa.OSFile(str(destination), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as writer:
        for records in _chunks(source):
            kind = records[0].kind
            rows = list(_rows(records, template, config, counts))
            if rows:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
            on_progress(counts["records"])
    if counts["cut_records"]:
        logger.warning(
            "Cut %d of %d records of %s at %d tokens; %d had nothing trained left",
            *(counts["cut_records"], counts["records"], source.name, config.max_length),
            counts["lost_records"],
        )
    return TokenFacts(kind=kind, **counts)


def _chunks(source: Path) -> Iterator[list[Record]]:
    """Yield the records of a file, some at a time, those of one chunk of one kind."""
    with open(source, "rb") as lines:
        while chunk := [Record.from_json(orjson.loads(line)) for line in islice(lines, CHUNK_RECORDS)]:
            yield from (list(records) for _, records in groupby(chunk, key=lambda record: record.kind))


def _rows(
    records: Sequence[Record], template: ChatTemplate, config: DataConfig, counts: dict[str, int]
) -> Iterator[dict[str, Any]]:
    for record, sequences in zip(records, _encode(records, template), strict=True):
        if counts["records"] < PROVED_RECORDS:
            prove_labels(record, sequences, template)
        if not all(_trained(labels) for _, labels in sequences):
            raise JobFailed("data", f"line {record.line} was accepted, but no token of it would be trained")
        counts["records"] += 1
        rows = _fit(sequences, config)
        counts["cut_records"] += rows != [sequences]
        counts["lost_records"] += not rows
        for pieces in rows:
            counts["rows"] += 1
            counts["tokens"] += sum(len(ids) for ids, _ in pieces)
            counts["trained_tokens"] += sum(_trained(labels) for _, labels in pieces)
            yield {
                "line": record.line,
                "length": max(len(ids) for ids, _ in pieces),
                "input_ids": [ids for ids, _ in pieces],
                "labels": [labels for _, labels in pieces],
            }


def _encode(records: Sequence[Record], template: ChatTemplate) -> list[list[Piece]]:
    """Tokenise records of one kind; each becomes one sequence, or two when it is a preference pair."""
    kind = records[0].kind
    if kind == "text":
        encoded: list[Encoded | RecordRefused] = list(
            template.encode_text_batch([record.text for record in records])
        )
        return [[_piece(record, one)] for record, one in zip(records, encoded, strict=True)]
    if kind == "chat":
        encoded = template.encode_messages_batch([(record.messages, record.tools) for record in records])
        return [[_piece(record, one)] for record, one in zip(records, encoded, strict=True)]
    answers = [(record, answer) for record in records for answer in (record.chosen, record.rejected)]
    encoded = template.encode_messages_batch(
        [([*record.prompt, *answer], None) for record, answer in answers]
    )
    pieces = [
        _only_answer(_piece(record, one), template.encode_prompt(record.prompt))
        for (record, _), one in zip(answers, encoded, strict=True)
    ]
    return [list(pair) for pair in zip(pieces[::2], pieces[1::2], strict=True)]


def _piece(record: Record, encoded: Encoded | RecordRefused) -> Piece:
    if isinstance(encoded, RecordRefused):
        raise JobFailed(
            "data", f"line {record.line} was accepted but cannot be tokenised: {encoded}"
        ) from encoded
    return encoded.input_ids, encoded.labels


def _only_answer(piece: Piece, prompt_ids: list[int]) -> Piece:
    """Leave assistant turns inside the prompt untrained: a preference is about the answer alone."""
    ids, labels = piece
    if ids[: len(prompt_ids)] != prompt_ids:
        raise JobFailed("data", "the chat template renders a prompt differently once it has been answered")
    return ids, [IGNORE] * len(prompt_ids) + labels[len(prompt_ids) :]


def _fit(sequences: list[Piece], config: DataConfig) -> list[list[Piece]]:
    """Bring one record under the length limit: usually one row, none when nothing trained is left."""
    if all(len(ids) <= config.max_length for ids, _ in sequences):
        return [sequences]
    if config.excess_length == "truncate":
        cut = [(ids[: config.max_length], labels[: config.max_length]) for ids, labels in sequences]
        return [cut] if all(_trained(labels) for _, labels in cut) else []
    if config.excess_length == "split" and len(sequences) == 1:
        (ids, labels), size = sequences[0], config.max_length
        pieces = [(ids[at : at + size], labels[at : at + size]) for at in range(0, len(ids), size)]
        return [[piece] for piece in pieces if _trained(piece[1])]
    if config.excess_length == "drop":
        return []
    raise JobFailed("data", f"a record of {max(len(ids) for ids, _ in sequences)} tokens was accepted")


def _trained(labels: list[int]) -> int:
    """Count the tokens that are learned; the first of a sequence has nothing to be predicted from."""
    return sum(label != IGNORE for label in labels[1:])


def prove_labels(record: Record, sequences: Sequence[Piece], template: ChatTemplate) -> None:
    """Decode what is trained and compare it with what the assistant said; raise JobFailed if it differs.

    White space is left out of the comparison, since templates trim. Every answer must end in a token
    that stops generation, and nothing of another role may be trained.
    """
    for (ids, labels), spoken in zip(sequences, _spoken(record), strict=True):
        if spoken is None:
            continue
        turns = _turns(ids, labels)
        heard = [_letters(template.decode(turn)) for turn in turns]
        if heard != [_letters(text) for text in spoken]:
            raise JobFailed(
                "data",
                f"line {record.line}: trained tokens decode to {heard!r}, the assistant said {spoken!r}",
            )
        if any(turn[-1] not in template.stop_token_ids for turn in turns):
            raise JobFailed("data", f"line {record.line}: the end of an answer would not be trained")


def _spoken(record: Record) -> list[list[str] | None]:
    """Return for each sequence the assistant's texts, or None where the template words them itself."""
    if record.kind == "text":
        return [None]
    conversations = [record.messages] if record.kind == "chat" else [record.chosen, record.rejected]
    return [
        None
        if any(message.get("tool_calls") for message in messages)
        else [message["content"] for message in messages if message["role"] == "assistant"]
        for messages in conversations
    ]


def _turns(ids: list[int], labels: list[int]) -> list[list[int]]:
    turns: list[list[int]] = []
    before = IGNORE
    for token, label in zip(ids, labels, strict=True):
        if label != IGNORE:
            if before == IGNORE:
                turns.append([])
            turns[-1].append(token)
        before = label
    return turns


def _letters(text: str) -> str:
    return "".join(text.split())
