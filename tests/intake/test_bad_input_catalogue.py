"""The catalogue of bad input: each row is a file as people send it, and the sentence they get for it.

A bad line lies between good ones: it alone is refused, under its number, with a reason and a remedy, and
the rest of the file goes on. A bad file is refused as a whole.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import orjson
import psutil
import pytest

from chat_template import ChatTemplate
from config import DataConfig
from intake.report import ReportCard
from intake.strict_json import MAX_DEPTH
from intake.validation import PlanInputs, check_file

Checker = Callable[..., ReportCard]
GOOD = b'{"messages":[{"role":"user","content":"2+2?"},{"role":"assistant","content":"4"}]}'
OTHER = GOOD.replace(b"2+2", b"3+1")
LENIENT = DataConfig(max_bad_fraction=0.4)


def turns(*spoken: tuple[str, object]) -> bytes:
    return orjson.dumps({"messages": [{"role": role, "content": content} for role, content in spoken]})


BAD_LINES: list[tuple[str, bytes, str, str, str]] = [
    # what it is, the line, the field at fault, what was found, what to do
    ("Latin-1", GOOD.replace(b"2+2", b"caf\xe9"), "record", "byte 0xe9 at byte 43 of the record", "iconv"),
    ("overlong UTF-8", GOOD.replace(b"2+2", b"\xc0\x80"), "record", "byte 0xc0", "save the file as UTF-8"),
    (
        "raw zero byte",
        GOOD.replace(b"2+2", b"2\x002"),
        "record",
        "a zero byte at byte 41",
        "copy the file again",
    ),
    ("\\u0000", GOOD.replace(b"2+2", b"2\\u00002"), "messages[0].content", "the character \\u0000", "remove"),
    ("lone surrogate", GOOD.replace(b"2+2", b"\\ud83d"), "record", "half a character, \\ud83d", "emoji"),
    (
        "control character",
        GOOD.replace(b"2+2", b"2\x1b2"),
        "record",
        "unexpected control character",
        "repair",
    ),
    ("NaN", b'{"score":NaN,' + GOOD[1:], "record", "NaN", "replace NaN"),
    ("Infinity", b'{"score":-Infinity,' + GOOD[1:], "record", "-Infinity", "replace -Infinity"),
    ("1e999", b'{"score":1e999,' + GOOD[1:], "record", "a number out of range", "in quotes"),
    (
        "5000 digits",
        b'{"n":' + b"7" * 5000 + b"," + GOOD[1:],
        "record",
        "a whole number of 5000 digits",
        "in quotes",
    ),
    (
        "65 bits",
        b'{"n":36893488147419103232,' + GOOD[1:],
        "record",
        "a whole number of 20 digits",
        "in quotes",
    ),
    ("repeated key", GOOD[:-1] + b',"messages":[]}', "messages", "this key twice", "keep one"),
    (
        "repeated inner key",
        GOOD.replace(b'"role"', b'"role":"user","role"', 1),
        "role",
        "this key twice",
        "keep one",
    ),
    ("100,000 levels", b"[" * 100_000, "record", f"nesting deeper than {MAX_DEPTH} levels", "flatten"),
    ("33 levels", b'{"a":' * 33 + b"1" + b"}" * 33, "record", f"nesting deeper than {MAX_DEPTH}", "flatten"),
    ("9 MiB line", b'{"a":"' + b"x" * (9 << 20) + b'"}', "record", "9,437,193 bytes", "split the record"),
    ("two objects", GOOD + b" " + GOOD, "record", "more after the end of the object", "a line of its own"),
    ("comma after", GOOD + b",", "record", "a comma after the object", "remove it"),
    ("comma inside", GOOD[:-1] + b",}", "record", "trailing comma", "repair"),
    ("single quotes", GOOD.replace(b'"', b"'"), "record", "single quotes", "double quotes"),
    ("bare number", b"42", "record", "the number 42", "as an object"),
    ("bare text", b'"2+2? 4"', "record", 'the text "2+2? 4"', "as an object"),
    ("null", b"null", "record", "null", "as an object"),
    ("array in JSON lines", b"[" + GOOD + b"]", "record", "a list of 1", "ends in .json"),
    ("not JSON at all", b"question: 2+2?", "record", "text that is not JSON", "repair the text near"),
    ("half an object", GOOD[:40], "record", "text that is not JSON", "repair the text near"),
    (
        "unknown keys alone",
        b'{"q":"2+2?","a":"4"}',
        "record",
        "an object with the keys 'q', 'a'",
        "rename the keys",
    ),
    ("messages is text", b'{"messages":"2+2? 4"}', "messages", 'the text "2+2? 4"', "wrap it as [{"),
    ("messages is null", b'{"messages":null}', "messages", "null", "wrap it as [{"),
    ("no turns", b'{"messages":[]}', "messages", "an empty list", "add the turns"),
    (
        "wrong role",
        turns(("boss", "2+2?"), ("assistant", "4")),
        "messages[0].role",
        'the text "boss"',
        "rename",
    ),
    (
        "role missing",
        b'{"messages":[{"content":"2+2?"}]}',
        "messages[0].role",
        "no role in an object",
        "rename",
    ),
    (
        "system late",
        turns(("user", "a"), ("system", "b"), ("assistant", "c")),
        "messages[1].role",
        "system after the first turn",
        "to the front",
    ),
    ("no assistant", turns(("user", "2+2?")), "messages", "no assistant turn", "add the answer"),
    (
        "assistant first",
        turns(("assistant", "4"), ("user", "2+2?")),
        "messages[0].role",
        "assistant",
        "begin with the user",
    ),
    (
        "empty content",
        turns(("user", "2+2?"), ("assistant", "")),
        "messages[1].content",
        "empty text",
        "fill it in",
    ),
    (
        "blank content",
        turns(("user", " \n"), ("assistant", "4")),
        "messages[0].content",
        "empty text",
        "fill it in",
    ),
    (
        "content null",
        turns(("user", "2+2?"), ("assistant", None)),
        "messages[1].content",
        "null",
        "write the text",
    ),
    (
        "content number",
        turns(("user", "2+2?"), ("assistant", 4)),
        "messages[1].content",
        "the number 4",
        "in quotes",
    ),
    (
        "content object",
        turns(("user", "2+2?"), ("assistant", {"a": 4})),
        "messages[1].content",
        "an object with",
        "write the text",
    ),
    ("content missing", b'{"messages":[{"role":"user"}]}', "messages[0].content", "nothing", "add it"),
    (
        "an image",
        turns(("user", [{"type": "image_url", "image_url": "x"}]), ("assistant", "4")),
        "messages[0].content[0]",
        "a part of type",
        "leave other parts out",
    ),
    (
        "tool without a place",
        turns(("user", "a"), ("assistant", "b"), ("tool", "c")),
        "messages[2]",
        "a tool call or its result",
        "choose a base model",
    ),
    (
        "too many tokens",
        turns(("user", "2+2?"), ("assistant", "word " * 4000)),
        "record",
        " tokens",
        "data.max_length",
    ),
    (
        "equal pair",
        b'{"prompt":"2+2?","chosen":"4","rejected":"4"}',
        "record",
        "preference",
        "a file of its own",
    ),
]


@pytest.mark.parametrize(
    ("line", "field", "found", "remedy"), [row[1:] for row in BAD_LINES], ids=[row[0] for row in BAD_LINES]
)
def test_a_bad_line_is_refused_by_number_and_the_rest_is_used(
    check: Checker, line: bytes, field: str, found: str, remedy: str
) -> None:
    card = check(GOOD + b"\n" + line + b"\n" + OTHER + b"\n", config=LENIENT)
    (refusal,) = card.refusals
    assert (refusal.line, refusal.field) == (2, field)
    assert found in refusal.found
    assert remedy in refusal.remedy
    assert refusal.expected
    assert (card.accepted, card.refused, card.usable) == (2, 1, True)
    for text in (refusal.found, refusal.expected, refusal.remedy):
        assert text.isprintable() and len(text) < 400


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.jsonl", GOOD)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(GOOD)
        archive.addfile(entry, io.BytesIO(GOOD))
    return buffer.getvalue()


def bomb() -> bytes:
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(b"\x00" * 2**20) for _ in range(100)) + packer.flush()


BAD_FILES: list[tuple[str, str, bytes, str]] = [
    ("no bytes", ".jsonl", b"", "the file is empty (0 bytes)"),
    ("only blanks", ".jsonl", b" \n\r\n\t\n", "no record in the file"),
    ("an empty array", ".json", b"[]\n", "no record in the file"),
    ("only a header", ".csv", b"question,answer\n", "no record in the file"),
    ("no good line", ".jsonl", b"x\ny\n", "2 of 2 records are refused (100.0%)"),
    ("UTF-16", ".jsonl", GOOD.decode().encode("utf-16"), "text in UTF-16 (by its byte order mark)"),
    ("UTF-16 without a mark", ".jsonl", GOOD.decode().encode("utf-16-le"), "look like text in UTF-16"),
    ("UTF-32", ".jsonl", GOOD.decode().encode("utf-32"), "text in UTF-32 (by its byte order mark)"),
    ("a tail of zeros", ".jsonl", (GOOD + b"\n") * 50 + b"\x00" * 4096, "cut off at the sender"),
    ("a sparse file", ".jsonl", b"\x00" * 2**24, "cut off at the sender"),
    ("gzip by another name", ".jsonl", gzip.compress(GOOD), "the bytes are gzip, expected .jsonl"),
    ("Zstandard", ".jsonl", b"\x28\xb5\x2f\xfd\x04\x58", "the bytes are Zstandard"),
    ("a zip archive", ".jsonl", zipped(), "the bytes are a zip archive"),
    ("a tar archive", ".jsonl", tarred(), "the bytes are a tar archive"),
    ("a gzip bomb", ".jsonl.gz", bomb(), "unpacks to more than 200 times its size"),
    ("half a gzip file", ".jsonl.gz", gzip.compress(GOOD * 99)[:-20], "ends in the middle"),
    ("an array that is cut", ".json", b"[" + GOOD + b", " + GOOD[:30], "the JSON array is never closed"),
    (
        "a JSON array in .jsonl",
        ".jsonl",
        b"[\n" + GOOD + b",\n" + OTHER + b"\n]\n",
        "a name that ends in .json",
    ),
    ("an indented object", ".json", orjson.dumps({"data": [1]}, option=orjson.OPT_INDENT_2), "only {"),
    ("wrapped in an object", ".json", b'{"data":[' + GOOD + b"]}", "an object with the key 'data'"),
    ("not Parquet", ".parquet", GOOD, "the bytes are not .parquet"),
]


@pytest.mark.parametrize(
    ("suffix", "content", "reason"), [row[1:] for row in BAD_FILES], ids=[row[0] for row in BAD_FILES]
)
def test_a_bad_file_is_refused_with_the_reason(
    check: Checker, suffix: str, content: bytes, reason: str
) -> None:
    card = check(content, suffix)
    assert not card.usable
    assert card.reason is not None and reason in card.reason
    assert card.reason.isprintable()
    assert card.plan is None


ACCEPTED: list[tuple[str, bytes]] = [
    ("byte order mark", b"\xef\xbb\xbf" + GOOD + b"\n" + OTHER + b"\n"),
    ("Windows line ends", GOOD + b"\r\n" + OTHER + b"\r\n"),
    ("trailing spaces", GOOD + b"  \n" + OTHER + b"\t\n"),
    ("blank lines", b"\n" + GOOD + b"\n\n \n" + OTHER + b"\n\n"),
    ("no final line end", GOOD + b"\n" + OTHER),
    ("spaces everywhere", GOOD.replace(b":", b" : ").replace(b",", b" , ") + b"\n" + OTHER),
    ("line separators inside", GOOD.replace(b"2+2", "2\u2028\u00852".encode()) + b"\n" + OTHER),
    ("escaped emoji", GOOD.replace(b"2+2", b"\\ud83d\\ude00") + b"\n" + OTHER),
    ("unknown keys", b'{"id":1,' + GOOD[1:] + b"\n" + OTHER),
    ("code in the content", GOOD.replace(b"2+2", b'{\\"a\\": {\\"a\\": \\"b\\"}} \\\\') + b"\n" + OTHER),
    ("control tokens typed", GOOD.replace(b"2+2", b"<|im_end|><|im_start|>system") + b"\n" + OTHER),
    ("template code typed", GOOD.replace(b"2+2", b"{{7*7}} {% for x in y %}") + b"\n" + OTHER),
]


@pytest.mark.parametrize("content", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_what_is_only_unusual_is_accepted(check: Checker, content: bytes) -> None:
    card = check(content, config=DataConfig(max_bad_fraction=0))
    assert (card.accepted, card.refused, card.usable) == (2, 0, True)


def test_a_record_that_would_be_cut_to_nothing_trained_is_refused(check: Checker) -> None:
    late = turns(("user", "word " * 400), ("assistant", "4"))
    config = DataConfig(max_length=100, excess_length="truncate", max_bad_fraction=0.5)
    card = check(GOOD + b"\n" + late + b"\n", config=config)
    assert (card.accepted, card.refused) == (1, 1)
    assert "the answer beginning at token" in card.refusals[0].found


def test_a_gigabyte_without_a_line_end_takes_no_memory(tmp_path: Path, template: ChatTemplate) -> None:
    path = tmp_path / "file.jsonl"
    with open(path, "wb") as file:
        file.write(GOOD + b"\n")
        file.truncate(2**30)
        file.seek(2**30)
        file.write(b"x\n" + OTHER + b"\n")
    process = psutil.Process()
    before = process.memory_info().rss
    seen: list[int] = []
    card = check_file(
        path,
        LENIENT,
        template,
        seed=1,
        name="x",
        plan=PlanInputs(8, 1),
        on_progress=lambda *_: seen.append(process.memory_info().rss),
    )
    assert (card.accepted, card.refused) == (2, 1)
    assert card.refusals[0].found == f"{2**30 - len(GOOD) + 1:,} bytes"
    assert max(seen) - before < 64 * 2**20
