"""From a file's bytes to raw records: one iterator for every container, in constant memory.

A file's name says what it should be and its first bytes must agree. A record that cannot be read is handed
on as a `BadRecord` and reading goes on behind it; FileRefused is raised when the rest of the file cannot
be trusted.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from errors import FileRefused, RecordRefused
from intake.display import printable
from intake.json_array import read_array
from intake.parquet import read_parquet
from intake.raw_records import (
    BOM,
    CHUNK_BYTES,
    BadRecord,
    ByteStream,
    RawRecord,
    read_bounded_line,
    too_large,
    too_long,
)
from intake.strict_json import parse_object
from intake.tables import read_csv

Container = Literal["jsonl", "json", "jsonl.gz", "csv", "parquet"]

SUFFIXES: dict[str, Container] = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".jsonl.gz": "jsonl.gz",
    ".csv": "csv",
    ".parquet": "parquet",
}
UNITS: dict[Container, str] = {
    "jsonl": "line",
    "json": "element",
    "jsonl.gz": "line",
    "csv": "row",
    "parquet": "row",
}
"""What a record's number counts in each container."""

MAX_UNPACKED_RATIO = 200
"""JSON lines of chat shrink 3 to 50 times; zeros, and little else, 1000 times."""

_RATIO_GRACE_BYTES = 16 * 2**20
_HEAD_BYTES = 4096
_OWN_MAGIC: dict[Container, bytes] = {"jsonl.gz": b"\x1f\x8b", "parquet": b"PAR1"}
_UNPACK = "unpack it and drop the file inside"
_RECODE = "save the file as UTF-8"
_FOREIGN_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "gzip", "if it holds JSON lines, give it a name that ends in .jsonl.gz"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard", _UNPACK),
    (0, b"PK\x03\x04", "a zip archive or an Excel file", _UNPACK),
    (0, b"BZh", "bzip2", _UNPACK),
    (0, b"\xfd7zXZ", "xz", _UNPACK),
    (0, b"7z\xbc\xaf", "7-Zip", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"PAR1", "Parquet", "give it a name that ends in .parquet"),
    (0, b"\xff\xfe\x00\x00", "text in UTF-32 (by its byte order mark)", _RECODE),
    (0, b"\x00\x00\xfe\xff", "text in UTF-32 (by its byte order mark)", _RECODE),
    (0, b"\xff\xfe", "text in UTF-16 (by its byte order mark)", _RECODE),
    (0, b"\xfe\xff", "text in UTF-16 (by its byte order mark)", _RECODE),
)


def identify(path: Path) -> Container:
    """Tell the container of a file from its name; raise FileRefused when its first bytes do not agree.

    A file named .json that does not begin with an array holds JSON lines.
    """
    name = path.name.lower()
    container = SUFFIXES.get(".jsonl.gz" if name.endswith(".jsonl.gz") else Path(name).suffix)
    if container is None:
        known = ", ".join(SUFFIXES)
        raise FileRefused(f'the name ends in "{printable(path.suffix)}", expected one of {known}; rename it')
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise FileRefused("the file is empty (0 bytes); copy it again")
    _check_magic(head, container)
    if container == "json" and head.removeprefix(BOM).lstrip()[:1] != b"[":
        return "jsonl"
    return container


def read_records(
    path: Path, container: Container, max_record_bytes: int, max_bytes: int
) -> Iterator[RawRecord | BadRecord]:
    """Yield every record of a data file, also those that cannot be read; blank lines are skipped.

    No record above `max_record_bytes` is held in memory. Raises FileRefused when the container itself is
    damaged, holds more than `max_bytes` unpacked, or unpacks to absurd size.
    """
    if path.stat().st_size > max_bytes:
        raise too_large(max_bytes)
    with open(path, "rb") as file:
        match container:
            case "jsonl":
                yield from _read_lines(file, max_record_bytes, file.tell)
            case "jsonl.gz":
                unpacked = io.BufferedReader(_Unpacked(file, max_bytes), CHUNK_BYTES)
                _check_magic(unpacked.peek(_HEAD_BYTES), "jsonl", "the bytes inside the gzip file")
                yield from _read_lines(unpacked, max_record_bytes, file.tell)
            case "json":
                yield from read_array(file, max_record_bytes)
            case "csv":
                yield from read_csv(file, max_record_bytes)
            case "parquet":
                yield from read_parquet(path, max_record_bytes, max_bytes)


def _check_magic(head: bytes, container: Container, where: str = "the bytes") -> None:
    own = _OWN_MAGIC.get(container)
    if own is not None and head.startswith(own):
        return
    for offset, magic, what, remedy in _FOREIGN_MAGIC:
        if head.startswith(magic, offset):
            raise FileRefused(f"{where} are {what}, expected .{container} as the name says; {remedy}")
    if own is not None:
        raise FileRefused(f"{where} are not .{container} as the name says; rename the file to what it is")
    if len(head) > 1 and (head[0] == 0) != (head[1] == 0):
        raise FileRefused(f"{where} look like text in UTF-16, expected UTF-8; {_RECODE}")


class _Unpacked(io.RawIOBase):
    """The contents of an open gzip file; raises FileRefused when it is damaged, too large or a bomb."""

    def __init__(self, packed: BinaryIO, max_bytes: int) -> None:
        self._packed = packed
        self._max_bytes = max_bytes
        self._unpacked = gzip.GzipFile(fileobj=packed)
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._unpacked.read(len(buffer))
        except EOFError:
            raise FileRefused("the gzip file ends in the middle; copy it again") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise FileRefused(f"the gzip file is damaged ({error}); copy it again") from None
        self._size += len(data)
        if self._size > self._max_bytes:
            raise too_large(self._max_bytes)
        if self._size > max(_RATIO_GRACE_BYTES, MAX_UNPACKED_RATIO * self._packed.tell()):
            raise FileRefused(
                f"the gzip file unpacks to more than {MAX_UNPACKED_RATIO} times its size, which chats never"
                " do; if it is what you mean, unpack it and drop the .jsonl"
            )
        buffer[: len(data)] = data
        return len(data)


def _read_lines(
    stream: ByteStream, limit: int, done_bytes: Callable[[], int]
) -> Iterator[RawRecord | BadRecord]:
    number = 0
    while True:
        line, size = read_bounded_line(stream, limit)
        if not line:
            return
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if size > limit:
            yield BadRecord(number, too_long(size, limit), line, size, done_bytes())
            continue
        if line.isspace() or not line:
            continue
        try:
            value = parse_object(line)
        except RecordRefused as problem:
            if not line.endswith(b"\n"):
                problem.remedy += "; the file ends inside this line, so look whether it was copied whole"
            yield BadRecord(number, problem, line, size, done_bytes())
        else:
            yield RawRecord(number, value, line, done_bytes())
