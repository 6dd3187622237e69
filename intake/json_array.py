"""One JSON array as a stream of its elements, in constant memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from errors import FileRefused, RecordRefused
from intake.raw_records import CHUNK_BYTES, KEPT_BYTES, BadRecord, RawRecord, refuse_cut_off, too_long
from intake.strict_json import RECORD, parse_object

_STRUCTURE = re.compile(rb'["{}\[\],]')
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


def read_array(file: BinaryIO, limit: int) -> Iterator[RawRecord | BadRecord]:
    """Yield each element of the array that `file` begins with; raise FileRefused when it is not whole."""
    splitter = _ArraySplitter(limit)
    number = 0
    while chunk := file.read(CHUNK_BYTES):
        for element, size in splitter.feed(chunk):
            number += 1
            yield _parse_element(element, size, limit, number, file.tell())
    if not splitter.is_closed:
        raise FileRefused(
            f"the JSON array is never closed: the file ends inside element {number + 1}; copy it again"
        )


def _parse_element(element: bytes, size: int, limit: int, number: int, done: int) -> RawRecord | BadRecord:
    if size > limit:
        return BadRecord(number, too_long(size, limit), element[:KEPT_BYTES], size, done)
    if not element:
        problem = RecordRefused(RECORD, "nothing beside a comma", "an object", "remove the comma")
        return BadRecord(number, problem, element, size, done)
    try:
        return RawRecord(number, parse_object(element), element, done)
    except RecordRefused as problem:
        return BadRecord(number, problem, element, size, done)


class _ArraySplitter:
    """Cuts the bytes of one JSON array into its elements without understanding them.

    What comes before the array, such as a byte order mark, is passed over. Only brackets and quotes are
    followed, so a broken element does not take the next one with it unless its brackets do not match. An
    element above the limit is measured, not kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._depth = 0
        self._in_string = False
        self._skip_next = False
        self._parts: list[bytes] = []
        self._size = 0
        self._count = 0
        self.is_closed = False

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, int]]:
        """Yield each element that ends in this chunk, with its full size in bytes."""
        if self.is_closed:
            self._check_end(chunk)
            return
        start = 0
        position = 1 if self._skip_next else 0
        self._skip_next = False
        while (match := self._next_symbol(chunk, position)) is not None:
            position = match.end()
            symbol = match.group()
            if symbol == b'"':
                self._in_string = True
            elif symbol in b"[{":
                self._depth += 1
                if self._depth == 1:
                    start = position
            elif symbol in b"]}":
                self._depth -= 1
            if self._depth == 0 or (self._depth == 1 and symbol == b","):
                self._keep(chunk[start : position - 1])
                start = position
                yield from self._take(is_last=self._depth == 0)
            if self._depth == 0:
                self._close(symbol, chunk[position:])
                return
        self._keep(chunk[start:])

    def _next_symbol(self, chunk: bytes, position: int) -> re.Match[bytes] | None:
        """Find the next bracket, comma or opening quote outside strings; None at the end of the chunk."""
        if self._in_string:
            rest = _REST_OF_STRING.match(chunk, position)
            assert rest is not None
            position = rest.end() + 1
            if rest.end() == len(chunk):
                return None
            if chunk[rest.end()] == ord("\\"):
                self._skip_next = True
                return None
            self._in_string = False
        return _STRUCTURE.search(chunk, position)

    def _keep(self, piece: bytes) -> None:
        if self._size <= self._limit:
            self._parts.append(piece[: self._limit + 1 - self._size])
        self._size += len(piece)

    def _take(self, *, is_last: bool) -> Iterator[tuple[bytes, int]]:
        element, size = b"".join(self._parts).strip(), self._size
        self._parts.clear()
        self._size = 0
        if element or self._count or not is_last:
            self._count += 1
            yield element, size

    def _close(self, symbol: bytes, rest: bytes) -> None:
        if symbol != b"]":
            raise FileRefused(
                f"the brackets of the JSON array do not match in element {self._count}; repair it"
            )
        self.is_closed = True
        self._check_end(rest)

    def _check_end(self, rest: bytes) -> None:
        if rest and not rest.strip(b"\x00"):
            refuse_cut_off()
        if rest.strip():
            raise FileRefused("more follows after the end of the JSON array; put all records into one array")
