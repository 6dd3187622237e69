"""Rows of Parquet become records; what its decoder meets stays in a process of its own."""

from __future__ import annotations

import io
import random
import resource
import struct
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from errors import FileRefused
from intake.raw_records import BadRecord, RawRecord
from intake.reading import read_records

LIMIT = 4096
MAX_BYTES = 1 << 30


def values_of(records: list[RawRecord | BadRecord]) -> list[Any]:
    return [record.value if isinstance(record, RawRecord) else record.problem.found for record in records]


def write_parquet(path: Path, table: pyarrow.Table) -> Path:
    pyarrow.parquet.write_table(table, path)
    return path


def test_nulls_in_parquet_are_no_keys(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist(
        [
            {"messages": [{"role": "user", "content": "x", "name": None}], "tools": None},
            {"messages": [{"role": "user", "content": "y", "name": "z"}], "tools": "[]"},
        ]
    )
    records = read_records(write_parquet(tmp_path / "a.parquet", table), "parquet", LIMIT, MAX_BYTES)
    assert [set(value) for value in values_of(list(records))] == [{"messages"}, {"messages", "tools"}]


def test_text_in_parquet_that_is_not_utf8_is_one_bad_record(tmp_path: Path) -> None:
    column = pyarrow.array([b"good", b"caf\xe9", b"fine"]).view(pyarrow.string())
    path = write_parquet(tmp_path / "a.parquet", pyarrow.table({"text": column}))
    records = list(read_records(path, "parquet", LIMIT, MAX_BYTES))
    assert values_of(records)[::2] == [{"text": "good"}, {"text": "fine"}]
    assert "0xe9" in values_of(records)[1]


def test_a_parquet_row_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pyarrow.table({"text": ["x" * 5000, "y"]}))
    bad, good = read_records(path, "parquet", LIMIT, MAX_BYTES)
    assert isinstance(bad, BadRecord) and isinstance(good, RawRecord)
    assert bad.size_bytes > 5000


def repeated(text: str, rows: int) -> pyarrow.Table:
    """Make a table of one text that is stored once and counts for every row."""
    return pyarrow.table(
        {"text": pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows, pyarrow.int32()), [text])}
    )


def test_a_value_of_megabytes_that_every_row_repeats_costs_bounded_memory_and_time(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", repeated("x" * (6 << 20), 100_000))
    assert path.stat().st_size < 1 << 20
    count = 0
    with pytest.raises(FileRefused, match=r"data\.max_bytes"):
        for _ in read_records(path, "parquet", 8 << 20, 100 << 20):
            count += 1
    assert count == 16
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20


def test_each_row_far_above_the_limit_is_one_bad_record(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", repeated("x" * (64 << 20), 3))
    records = list(read_records(path, "parquet", LIMIT, MAX_BYTES))
    assert values_of(records) == [f"{(64 << 20) + 8:,} bytes"] * 3


def test_a_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    with pytest.raises(FileRefused, match="name occurs twice"):
        list(read_records(write_parquet(tmp_path / "a.parquet", table), "parquet", LIMIT, MAX_BYTES))


def test_what_json_has_no_word_for_is_never_taken_for_a_text(tmp_path: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array([b"bytes"], pyarrow.binary())})
    (record,) = read_records(write_parquet(tmp_path / "a.parquet", table), "parquet", LIMIT, MAX_BYTES)
    assert isinstance(record, RawRecord)
    assert record.value == {"text": {"bytes": "b'bytes'"}}


def whole_file() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {number}" for number in range(500)]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("end", [b"", b"PARE", struct.pack("<I", 0xFFFFFFFF) + b"PAR1", bytes(4) + b"PAR1"])
def test_a_footer_that_cannot_be_is_refused_before_anything_is_decoded(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(whole_file()[:-8] + end)
    with pytest.raises(FileRefused, match="damaged"):
        list(read_records(path, "parquet", LIMIT, MAX_BYTES))


def test_a_file_with_flipped_bytes_is_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    content = whole_file()
    draw = random.Random(7)
    endings = []
    for _ in range(12):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(4, len(content) - 8)] = draw.randrange(256)
        path = tmp_path / "a.parquet"
        path.write_bytes(damaged)
        try:
            endings.append(len(list(read_records(path, "parquet", LIMIT, MAX_BYTES))) > 0)
        except FileRefused as refusal:
            endings.append("damaged" in str(refusal))
    assert all(endings)
