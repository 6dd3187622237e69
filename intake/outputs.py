"""The files that checking leaves in a run's folder: written bit by bit, named only when complete."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import orjson

import durable
from config import RunPaths
from intake.raw_records import BadRecord, RawRecord
from intake.report import Refusal, ReportCard


class RecordFiles:
    """``train.jsonl``, ``held_out.jsonl`` and ``refused.jsonl`` of one run, then its report.

    Until `publish` they bear temporary names, so that a torn check leaves nothing that looks whole. Without
    a run nothing is written at all.
    """

    def __init__(self, run: RunPaths | None) -> None:
        self._run = run
        self._train: BinaryIO | None = None
        self._held_out: BinaryIO | None = None
        self._refused: BinaryIO | None = None

    def __enter__(self) -> RecordFiles:
        if self._run is not None:
            durable.make_folder(self._run.data)
            try:
                self._train = _open_temporary(self._run.train_records)
                self._held_out = _open_temporary(self._run.held_out_records)
                self._refused = _open_temporary(self._run.refused)
            except OSError:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for final, file in self._files():
            file.close()
            _temporary(final).unlink(missing_ok=True)

    def train(self, stored: bytes) -> None:
        """Write one record that will be trained."""
        if self._train is not None:
            self._train.write(stored)

    def hold_out(self, stored: bytes) -> None:
        """Write one record that is kept for evaluation."""
        if self._held_out is not None:
            self._held_out.write(stored)

    def refuse(self, refusal: Refusal, source: RawRecord | BadRecord) -> None:
        """Write one refused record with its reason and its original bytes."""
        if self._refused is not None:
            line = refusal.model_dump() | _original(source)
            self._refused.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def trained(self) -> Iterator[bytes]:
        """Yield the lines of ``train.jsonl`` as they are so far."""
        return _lines_of(self._train, self._run.train_records) if self._run is not None else iter(())

    def held_out(self) -> Iterator[bytes]:
        """Yield the lines of ``held_out.jsonl`` as they are so far."""
        return _lines_of(self._held_out, self._run.held_out_records) if self._run is not None else iter(())

    def sample_trained(self, most: int) -> Iterator[bytes]:
        """Yield lines of ``train.jsonl`` from places as far apart as can be."""
        if self._run is None or self._train is None:
            return
        self._train.flush()
        with open(_temporary(self._run.train_records), "rb") as lines:
            size = os.fstat(lines.fileno()).st_size
            for number in range(most):
                if (at := size * number // most) < lines.tell():
                    continue
                lines.seek(at)
                if at:
                    lines.readline()
                if line := lines.readline():
                    yield line

    def leave_out(self, is_left_out: Callable[[bytes], bool]) -> None:
        """Write ``train.jsonl`` again without some of its lines."""
        if self._run is None or self._train is None:
            return
        kept = _temporary(self._run.train_records.with_suffix(".kept"))
        try:
            with open(kept, "wb", buffering=1 << 18) as file:
                file.writelines(line for line in self.trained() if not is_left_out(line))
            self._train.close()
            os.replace(kept, _temporary(self._run.train_records))
        finally:
            kept.unlink(missing_ok=True)
        self._train = open(_temporary(self._run.train_records), "ab")  # noqa: SIM115 - closed with the others

    def publish(self, card: ReportCard) -> None:
        """Give the complete files their names, the report last; a refused file has nothing to train."""
        if self._run is None:
            return
        wanted = {self._run.refused}
        if card.usable:
            wanted |= {self._run.train_records, self._run.held_out_records}
        self._run.report.unlink(missing_ok=True)
        for final, file in self._files():
            file.flush()
            os.fsync(file.fileno())
            final.unlink(missing_ok=True)
            if final in wanted:
                durable.move_file(_temporary(final), final)
            else:
                # Before the report: once that is there, nobody comes back to tidy up.
                _temporary(final).unlink()
        durable.write_bytes(self._run.report_text, card.to_text().encode("utf-8"))
        durable.write_json(self._run.report, card.model_dump(mode="json"))

    def _files(self) -> Iterator[tuple[Path, BinaryIO]]:
        """Yield the open files with the names they will have."""
        if self._run is not None:
            finals = (self._run.train_records, self._run.held_out_records, self._run.refused)
            for final, file in zip(finals, (self._train, self._held_out, self._refused), strict=True):
                if file is not None:
                    yield final, file


def _lines_of(file: BinaryIO | None, final: Path) -> Iterator[bytes]:
    if file is not None:
        file.flush()
        with open(_temporary(final), "rb", buffering=1 << 18) as lines:
            yield from lines


def _open_temporary(final: Path) -> BinaryIO:
    return open(_temporary(final), "wb", buffering=1 << 18)


def _temporary(final: Path) -> Path:
    return final.with_name(f".{final.name}{durable.PARTIAL_SUFFIX}")


def _original(source: RawRecord | BadRecord) -> dict[str, object]:
    """Return the record as it was, as text where it is UTF-8; of one above the size limit, its beginning."""
    try:
        original: dict[str, object] = {"raw": source.raw.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError:
        original = {"raw_base64": base64.b64encode(source.raw).decode("ascii")}
    if isinstance(source, BadRecord) and source.size_bytes > len(source.raw):
        original["raw_bytes"] = source.size_bytes
    return original
