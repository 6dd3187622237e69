"""Parquet: rows become raw records, their columns the keys; a null is no key.

The file is decoded by `parquet_rows` in a process of its own, whose memory is bounded and which may die.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO

import orjson

from errors import FileRefused, JobFailed
from intake.display import printable
from intake.raw_records import BadRecord, RawRecord, not_utf8, too_large, too_long

_PARQUET_ROWS = Path(__file__).with_name("parquet_rows.py")
_MAGIC = b"PAR1"
_FOOTER_END_BYTES = 8
_DAMAGED = "the Parquet file is damaged ({}); write it again"


def read_parquet(path: Path, limit: int, max_bytes: int) -> Iterator[RawRecord | BadRecord]:
    """Yield each row of a Parquet file.

    Raises FileRefused when it is damaged, kills its reader, or holds more than `max_bytes`.
    """
    _check_footer(path)
    command = [sys.executable, "-P", str(_PARQUET_ROWS), str(path), str(limit)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            is_whole = yield from _read_rows(process.stdout, path.stat().st_size, limit, max_bytes)
            if not is_whole:
                _explain_end(process.wait())
        finally:
            process.kill()


def _check_footer(path: Path) -> None:
    """Refuse at once what does not end as Parquet does; most damaged files do not."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _FOOTER_END_BYTES))
        end = file.read()
    footer_bytes = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC:
        raise FileRefused(_DAMAGED.format("it does not end as such files do"))
    if not 0 < footer_bytes <= size - len(_MAGIC) - _FOOTER_END_BYTES:
        raise FileRefused(_DAMAGED.format(f"its footer would be {footer_bytes:,} bytes long"))


def _read_rows(
    lines: IO[bytes], total: int, limit: int, max_bytes: int
) -> Generator[RawRecord | BadRecord, None, bool]:
    """Yield what the reader says; return whether it said that this was all."""
    rows = 1
    number = size = 0
    while line := lines.readline():
        letter, rest = line[:1], line[1:-1]
        if letter == b".":
            return True
        if letter == b"E":
            raise FileRefused(_DAMAGED.format(printable(orjson.loads(rest), 200)))
        if letter == b"N":
            rows = max(1, int(rest))
            continue
        number += 1
        size += int(rest) if letter == b"L" else len(rest)
        if size > max_bytes:
            raise too_large(max_bytes)
        yield _record(letter, rest, limit, number, min(total, total * number // rows))
    return False


def _record(letter: bytes, rest: bytes, limit: int, number: int, done: int) -> RawRecord | BadRecord:
    if letter == b"R":
        return RawRecord(number, orjson.loads(rest), rest, done)
    if letter == b"L":
        return BadRecord(number, too_long(int(rest), limit), b"", int(rest), done)
    byte, place = orjson.loads(rest)
    return BadRecord(number, not_utf8(byte, f"byte {place} of a text"), b"", 0, done)


def _explain_end(code: int) -> None:
    """Raise what a reader that ended in the middle means: the file's fault if it was killed by a signal."""
    if code < 0:
        raise FileRefused(_DAMAGED.format(f"its reader died of {signal.Signals(-code).name}"))
    raise JobFailed("parquet", f"the reader of Parquet files ended with exit code {code}; see the job's log")
