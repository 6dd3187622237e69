"""CSV: rows become raw records, their columns the keys; an empty cell is no key."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any, BinaryIO

from errors import FileRefused, RecordRefused
from intake.display import describe_keys
from intake.raw_records import (
    BOM,
    KEPT_BYTES,
    BadRecord,
    RawRecord,
    not_utf8,
    read_bounded_line,
    too_long,
)
from intake.strict_json import RECORD, parse_value

_JSON_COLUMNS = ("messages", "conversations", "tools")
_TURN_COLUMNS = ("prompt", "completion", "chosen", "rejected")
_DELIMITERS = ",;\t"


def read_csv(file: BinaryIO, limit: int) -> Iterator[RawRecord | BadRecord]:
    """Yield each row below the header; a row that is not CSV is passed over to the end of its line."""
    csv.field_size_limit(limit)
    lines = _CsvLines(file, limit)
    names, delimiter = _read_header(lines)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    number = 0
    while True:
        lines.start_row()
        try:
            row = next(rows, None)
            if row is None:
                return
            if not row:
                continue
            cells = _parse_row(row, names, lines)
        except (csv.Error, RecordRefused) as error:
            number += 1
            problem = error if isinstance(error, RecordRefused) else _not_csv(error)
            yield BadRecord(number, problem, bytes(lines.row), lines.size, file.tell())
        else:
            number += 1
            yield RawRecord(number, cells, bytes(lines.row), file.tell())


class _CsvLines:
    """The decoded lines of a CSV file for `csv.reader`, with the bytes of the row at hand."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._limit = limit
        self._number = 0
        self.row = bytearray()
        self.size = 0
        self.problem: RecordRefused | None = None

    def start_row(self) -> None:
        """Forget the row before."""
        self.row.clear()
        self.size = 0
        self.problem = None

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line, size = read_bounded_line(self._file, self._limit)
        if not line:
            raise StopIteration
        self._number += 1
        if self._number == 1:
            line = line.removeprefix(BOM)
        self.size += size
        if self.size > self._limit:
            del self.row[KEPT_BYTES:]
            self.row += line[: KEPT_BYTES - len(self.row)]
            raise too_long(self.size, self._limit)
        self.row += line
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.problem = not_utf8(line[error.start], f"byte {error.start + 1} of line {self._number}")
            return line.decode("utf-8", "replace")


def _read_header(lines: _CsvLines) -> tuple[list[str], str]:
    """Return the names in the first row and the delimiter that gives the most of them."""
    try:
        header = next(lines, "")
        rows = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    except (csv.Error, RecordRefused) as error:
        raise FileRefused(
            f"the first line is no CSV header ({error}); begin with the columns' names"
        ) from None
    if lines.problem is not None:
        raise FileRefused(f"the CSV header holds {lines.problem.found}; {lines.problem.remedy}")
    delimiter = max(rows, key=lambda delimiter: len(rows[delimiter]))
    names = [name.strip() for name in rows[delimiter]]
    if not names:
        raise FileRefused(
            "the CSV header is empty, expected the names of the columns; add them as first line"
        )
    if len(set(names)) < len(names):
        found = describe_keys(dict.fromkeys(names))
        raise FileRefused(f"the CSV header repeats one of {found}, expected each once; rename a column")
    return names, delimiter


def _parse_row(row: list[str], names: list[str], lines: _CsvLines) -> dict[str, Any]:
    if lines.problem is not None:
        raise lines.problem
    if len(row) != len(names):
        found, expected = f"{len(row)} cells", f"{len(names)}, as in the header"
        raise RecordRefused(RECORD, found, expected, 'add the missing cells, or write "…" around commas')
    return {name: _parse_cell(name, cell) for name, cell in zip(names, row, strict=True) if cell}


def _parse_cell(name: str, cell: str) -> Any:
    """Read the JSON of cells that hold turns or tools; every other cell is text."""
    if name not in _JSON_COLUMNS and not (name in _TURN_COLUMNS and cell.startswith('[{"')):
        return cell
    try:
        return parse_value(cell.encode("utf-8"))
    except RecordRefused as error:
        raise RecordRefused(name, error.found, "JSON in this cell", error.remedy) from None


def _not_csv(error: csv.Error) -> RecordRefused:
    remedy = 'write a text with commas, quotes or line ends in "…", and each " inside it twice'
    return RecordRefused(RECORD, f"a row that is not CSV ({error})", "rows like the header", remedy)
