"""A program: the rows of one Parquet file as lines, from a process that may run out of memory or die.

Parquet is decoded by a large body of C++ that believes what the file says of itself, and a value of megabytes
that a column repeats costs the file a few bits each time. So it is read here, under a memory limit of the
kernel; `intake.parquet` reads what this says. ``python -P parquet_rows.py PATH MAX_ROW_BYTES`` imports no
other module of ours. Each line is a letter and what belongs to it: ``N`` how many rows there should be, ``R``
a row, ``L`` the size of a row above the limit, ``U`` a byte that is not UTF-8 and its place, ``E`` why the
rest cannot be read; the last line is ``.``.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

MEMORY_BYTES = 4 * 2**30
"""Address space of this process; decoding one ordinary batch takes a hundredth of it."""
BATCH_BYTES = 1 << 20
MAX_BATCH_ROWS = 1024
SMALL_BATCH_BYTES = 16 << 20
"""A batch up to this size is turned into Python objects at once, a larger one row by row."""
READ_BYTES = 1 << 20
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME


def main(path: str, max_row_bytes: int, output: BinaryIO) -> None:
    """Write every row of the file at `path`; a damaged file ends in a line that says why."""
    try:
        for line in read_lines(path, max_row_bytes):
            output.write(line + b"\n")
    except BrokenPipeError:
        return  # nobody wants the rest
    except MemoryError:
        output.write(b'E"a batch of its rows needs more than 4 GiB of memory"\n')
    except Exception as error:  # noqa: BLE001 - the boundary of a process that exists to meet them
        output.write(b"E" + orjson.dumps(_storable(f"{type(error).__name__}: {error}")[:500]) + b"\n")
    output.write(b".\n")
    output.flush()


def read_lines(path: str, max_row_bytes: int) -> Iterator[bytes]:
    """Yield the line of each row."""
    # Imported under the memory limit and in the small pool, which the environment names.
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as table:
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            raise ValueError("a column's name occurs twice")
        yield b"N%d" % table.metadata.num_rows
        for batch in table.iter_batches(batch_size=_batch_rows(table, max_row_bytes), use_threads=False):
            yield from _lines_of(batch, max_row_bytes)


def _batch_rows(table: Any, max_row_bytes: int) -> int:
    """Return how many rows to decode at once: about a megabyte, few enough if each is as large as may be."""
    size = sum(table.metadata.row_group(number).total_byte_size for number in range(table.num_row_groups))
    rows = max(1, table.metadata.num_rows)
    fitting = min(BATCH_BYTES * rows // max(1, size), MEMORY_BYTES // 8 // max_row_bytes)
    return int(max(1, min(MAX_BATCH_ROWS, fitting)))


def _lines_of(batch: Any, max_row_bytes: int) -> Iterator[bytes]:
    if batch.nbytes <= SMALL_BATCH_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            rows = batch.to_pylist()
            yield from (_line_of(row, max_row_bytes) for row in rows)
            return
    for index in range(batch.num_rows):
        one = batch.slice(index, 1)
        if one.nbytes > 2 * max_row_bytes:
            yield b"L%d" % one.nbytes
            continue
        try:
            (row,) = one.to_pylist()
        except UnicodeDecodeError as error:
            yield b"U[%d,%d]" % (error.object[error.start], error.start + 1)
        else:
            yield _line_of(row, max_row_bytes)


def _line_of(row: dict[str, Any], max_row_bytes: int) -> bytes:
    cells = {key: cell for key, cell in row.items() if cell is not None}
    line = orjson.dumps(
        cells, default=_stranger, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME
    )
    return b"R" + line if len(line) <= max_row_bytes else b"L%d" % len(line)


def _stranger(value: Any) -> dict[str, str]:
    """Show what JSON has no word for, in a shape that is never taken for a text."""
    return {type(value).__name__: repr(value)[:200]}


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # the others reserve gigabytes that they do not use
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(sys.argv[1], int(sys.argv[2]), sys.stdout.buffer)
