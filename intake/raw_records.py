"""What every container yields: a parsed record with its place and bytes, or why it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from errors import FileRefused, RecordRefused
from intake.strict_json import RECORD

BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 1 << 20
KEPT_BYTES = 4096
"""How much of a record above the size limit is kept for people to recognise it."""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One parsed record with the place and the bytes it came from."""

    line: int
    """Its line, or its number among the array's elements or the table's rows, from 1."""
    value: dict[str, Any]
    raw: bytes
    done_bytes: int
    """How much of the file was read so far."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be read, and why."""

    line: int
    problem: RecordRefused
    raw: bytes
    """Its bytes, or the first `KEPT_BYTES` of a record above the size limit."""
    size_bytes: int
    done_bytes: int


class ByteStream(Protocol):
    """A file, or what is unpacked from one."""

    def readline(self, size: int = -1, /) -> bytes: ...


def read_bounded_line(stream: ByteStream, limit: int) -> tuple[bytes, int]:
    """Return the next line and its full size; of a line above `limit` only the beginning is returned.

    The rest of a long line is passed over in constant memory. Raises FileRefused when the file ends in
    zero bytes, which is what a power cut at the sender leaves behind.
    """
    line = stream.readline(limit + 1)
    size = len(line)
    last = line[-1:]
    while last not in (b"\n", b"") and (more := stream.readline(CHUNK_BYTES)):
        size += len(more)
        last = more[-1:]
    if last == b"\x00":
        refuse_cut_off()
    return (line, size) if size <= limit else (line[:KEPT_BYTES], size)


def too_long(size: int, limit: int) -> RecordRefused:
    """Say that a record is above the size limit."""
    remedy = "split the record; a file that is one JSON array needs a name that ends in .json"
    return RecordRefused(RECORD, f"{size:,} bytes", f"at most {limit:,} (data.max_line_bytes)", remedy)


def too_large(max_bytes: int) -> FileRefused:
    """Say that a file holds more than is read of one file."""
    return FileRefused(
        f"the file holds more than {max_bytes:,} bytes of data, unpacked (data.max_bytes); "
        "split it, or raise the limit if it is what you mean"
    )


def refuse_cut_off() -> NoReturn:
    """Refuse a file that ends in zero bytes."""
    raise FileRefused(
        "the file ends in zero bytes: it was cut off at the sender, as by a power cut; copy it again"
    )


def not_utf8(byte: int, place: str) -> RecordRefused:
    """Say that a byte is not UTF-8."""
    remedy = "save the file as UTF-8, for instance with: iconv -f latin1 -t utf-8"
    return RecordRefused(RECORD, f"byte 0x{byte:02x} at {place}, which is not UTF-8", "text in UTF-8", remedy)
