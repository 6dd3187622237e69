"""A log line cannot be forged and cannot harm a terminal."""

from __future__ import annotations

import contextlib
import logging

import pytest

from monitoring.daemon_log import LINE, LogFile, PrintableFormatter


def line_of(message: str) -> str:
    record = logging.LogRecord("daemon", logging.INFO, "", 1, message, None, None)
    return PrintableFormatter(LINE).format(record).partition(": ")[2]


def test_escape_sequences_and_invalid_text_are_escaped() -> None:
    assert line_of("a\x1b[31mb\udcffc\u202ed") == "a\\x1b[31mb\\udcffc\\u202ed"


def test_a_second_line_is_indented_so_that_it_cannot_pass_for_an_entry() -> None:
    assert line_of("one\n2026-01-01 INFO daemon: two").split("\n") == [
        "one",
        "    2026-01-01 INFO daemon: two",
    ]


def test_plain_text_stays_as_it_is() -> None:
    assert line_of("Promoted é → v0007") == "Promoted é → v0007"


def test_a_full_disk_silences_the_file_with_one_line_and_no_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = LogFile("/dev/full")
    record = logging.LogRecord("daemon", logging.INFO, "", 1, "Claimed %s", ("a.jsonl",), None)
    log.handle(record)
    log.handle(record)
    assert capsys.readouterr().err == (
        "Cannot write /dev/full: No space left on device; lines will be missing\n"
    )
    with contextlib.suppress(OSError):
        log.close()
