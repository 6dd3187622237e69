"""Every container gives the same records with their places; damage is a sentence, never a traceback."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import FileRefused
from intake.raw_records import KEPT_BYTES, BadRecord, RawRecord
from intake.reading import SUFFIXES, identify, read_records

LIMIT = 1 << 16
MAX_BYTES = 1 << 30
RECORDS: list[dict[str, Any]] = [
    {"text": f'räcörd {number}, "quoted" \\ and\nbroken'} for number in range(300)
]
LINES = b"".join(orjson.dumps(record) + b"\n" for record in RECORDS)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer, row_group_size=64)
    return buffer.getvalue()


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    quoted = ('"' + row["text"].replace('"', '""') + '"' for row in rows)
    return ("text\r\n" + "\r\n".join(quoted) + "\r\n").encode()


def read(
    folder: Path, content: bytes, suffix: str = ".jsonl", limit: int = LIMIT, max_bytes: int = MAX_BYTES
) -> list[RawRecord | BadRecord]:
    path = folder / f"file{suffix}"
    path.write_bytes(content)
    return list(read_records(path, identify(path), limit, max_bytes))


def refused(folder: Path, content: bytes, suffix: str = ".jsonl") -> str:
    with pytest.raises(FileRefused) as refusal:
        read(folder, content, suffix)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", LINES),
        (".JSONL", LINES),
        (".jsonl", b"\xef\xbb\xbf" + LINES),
        (".jsonl", LINES.replace(b"\n", b"  \r\n")),
        (".jsonl", LINES.rstrip(b"\n")),
        (".json", LINES),
        (".json", orjson.dumps(RECORDS)),
        (".json", b"\xef\xbb\xbf \n" + orjson.dumps(RECORDS, option=orjson.OPT_INDENT_2) + b"\n"),
        (".jsonl.gz", gzip.compress(LINES)),
        (".jsonl.gz", gzip.compress(LINES[:1000]) + gzip.compress(LINES[1000:])),
        (".csv", csv_of(RECORDS)),
        (".csv", b"\xef\xbb\xbf" + csv_of(RECORDS).replace(b"\r\n", b"\n")),
        (".parquet", parquet(RECORDS)),
    ],
)
def test_every_container_gives_the_same_records(tmp_path: Path, suffix: str, content: bytes) -> None:
    records = read(tmp_path, content, suffix)
    assert [record.value for record in records if isinstance(record, RawRecord)] == RECORDS
    assert [record.line for record in records] == list(range(1, 301))
    done = [record.done_bytes for record in records]
    assert done == sorted(done)
    assert 0 < done[-1] <= len(content)


def test_blank_lines_are_passed_over_and_lines_keep_their_numbers(tmp_path: Path) -> None:
    records = read(tmp_path, b'\n  \r\n{"a":1}\n\t\n{"a":2}\n\n')
    assert [record.line for record in records] == [3, 5]


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path: Path) -> None:
    (record,) = read(tmp_path, '{"text": "a\u2028b\u0085c"}\n'.encode())
    assert isinstance(record, RawRecord)
    assert record.value == {"text": "a\u2028b\u0085c"}


def test_a_line_above_the_limit_is_passed_over_and_the_next_one_read(tmp_path: Path) -> None:
    long = b'{"text": "' + b"x" * 5_000_000 + b'"}\n'
    bad, good = read(tmp_path, long + b'{"a":1}\n')
    assert isinstance(bad, BadRecord) and isinstance(good, RawRecord)
    assert (bad.size_bytes, bad.raw) == (len(long), long[:KEPT_BYTES])
    assert "5,000,013 bytes" in bad.problem.found
    assert good.line == 2


def test_a_line_of_just_the_limit_is_read(tmp_path: Path) -> None:
    line = b'{"a": "12345"}\n'
    assert isinstance(read(tmp_path, line, limit=len(line))[0], RawRecord)
    assert isinstance(read(tmp_path, line, limit=len(line) - 1)[0], BadRecord)


def test_a_last_line_that_is_cut_off_says_so(tmp_path: Path) -> None:
    _, bad = read(tmp_path, b'{"a":1}\n{"text": "and then th')
    assert isinstance(bad, BadRecord)
    assert "copied whole" in bad.problem.remedy


@pytest.mark.parametrize(
    ("suffix", "content", "words"),
    [
        (".jsonl", b"", "empty (0 bytes)"),
        (".jsonl", gzip.compress(LINES), "ends in .jsonl.gz"),
        (".jsonl", b"\x28\xb5\x2f\xfd" + b"x" * 20, "Zstandard"),
        (".jsonl", b"PK\x03\x04" + b"x" * 20, "zip archive"),
        (".jsonl.gz", b"PK\x03\x04" + b"x" * 20, "zip archive"),
        (".jsonl", b"x" * 257 + b"ustar\x00", "tar archive"),
        (".jsonl", b"BZh91AY", "bzip2"),
        (".jsonl", b"\xfd7zXZ\x00", "xz"),
        (".csv", parquet(RECORDS), "ends in .parquet"),
        (".parquet", LINES, "not .parquet"),
        (".jsonl.gz", LINES, "not .jsonl.gz"),
        (".parquet", b"PAR1" + b"x" * 50, "Parquet file is damaged"),
        (".jsonl", '{"a":1}\n'.encode("utf-16"), "UTF-16"),
        (".jsonl", '\ufeff{"a":1}\n'.encode("utf-16-be"), "UTF-16"),
        (".jsonl", '{"a":1}\n'.encode("utf-16-le"), "UTF-16"),
        (".jsonl", '{"a":1}\n'.encode("utf-16-be"), "UTF-16"),
        (".jsonl", '{"a":1}\n'.encode("utf-32"), "UTF-32"),
        (".jsonl", b"\x00" * 5_000_000, "zero bytes"),
        (".jsonl", LINES + b"\x00" * 5_000_000, "cut off at the sender"),
        (".json", orjson.dumps(RECORDS) + b"\x00" * 5_000_000, "cut off at the sender"),
        (".csv", csv_of(RECORDS) + b"\x00" * 5000, "cut off at the sender"),
        (".jsonl.gz", gzip.compress(LINES)[:-200], "ends in the middle"),
        (".jsonl.gz", gzip.compress(LINES)[:-8] + b"\x00" * 8, "damaged"),
        (".jsonl.gz", b"\x1f\x8b" + b"\xff" * 40, "damaged"),
        (".json", b'[{"a":1}, {"a":2}', "never closed"),
        (".json", b'[{"a":1}, {"a": "2', "never closed"),
        (".json", b'[{"a":1}, {"a":2}}, {"a":3}]', "do not match in element 2"),
        (".json", b'[{"a":1}] [{"a":2}]', "more follows"),
        (".csv", b"a,a\n1,2\n", "repeats"),
        (".csv", b"\n1,2\n", "header is empty"),
        (".csv", b"caf\xe9,a\n1,2\n", "0xe9"),
        (".txt", LINES, ".jsonl, .json, .jsonl.gz, .csv, .parquet"),
        (".gz", gzip.compress(LINES), ".jsonl.gz"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    tmp_path: Path, suffix: str, content: bytes, words: str
) -> None:
    assert words in refused(tmp_path, content, suffix)


def test_a_gzip_bomb_is_refused_long_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = zlib.compressobj(wbits=31)
    content = b"".join(bomb.compress(b"\x00" * 2**20) for _ in range(300)) + bomb.flush()
    assert "200 times its size" in refused(tmp_path, content, ".jsonl.gz")


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".jsonl", LINES),
        (".json", orjson.dumps(RECORDS)),
        (".jsonl.gz", gzip.compress(LINES)),
        (".csv", csv_of(RECORDS)),
        (".parquet", parquet(RECORDS)),
    ],
)
def test_no_more_than_max_bytes_is_read_of_any_container(tmp_path: Path, suffix: str, content: bytes) -> None:
    with pytest.raises(FileRefused, match=r"more than 5,000 bytes of data, unpacked \(data.max_bytes\)"):
        read(tmp_path, content, suffix, max_bytes=5000)


@pytest.mark.parametrize("inner", [gzip.compress(LINES), LINES.decode().encode("utf-16")])
def test_what_is_inside_gzip_must_be_lines_too(tmp_path: Path, inner: bytes) -> None:
    assert "the bytes inside the gzip file are" in refused(tmp_path, gzip.compress(inner), ".jsonl.gz")


def test_text_that_repeats_itself_a_lot_is_no_bomb(tmp_path: Path) -> None:
    line = orjson.dumps({"text": "the same words again, " * 20}) + b"\n"
    many = b"".join(line.replace(b"again", b"%d" % number) for number in range(40_000))
    assert len(many) > 16 * 2**20
    assert len(read(tmp_path, gzip.compress(many), ".jsonl.gz")) == 40_000


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    content=st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                b"[",
                b"]",
                b"{",
                b"}",
                b'"',
                b",",
                b":",
                b"\\",
                b"1",
                b"\n",
                b"\x00",
                b"a",
                b" ",
                b"\xff",
                b"text,x\n",
                b'{"a":1}',
            ]
        ),
        max_size=20,
    ).map(b"".join)
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    magic = {".jsonl.gz": b"\x1f\x8b\x08", ".parquet": b"PAR1"}.get(suffix, b"")
    try:
        records = read(tmp_path, magic + content, suffix)
    except FileRefused as refusal:
        assert str(refusal)
    else:
        assert all(isinstance(record, RawRecord | BadRecord) for record in records)
