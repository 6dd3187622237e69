"""A log line cannot be forged and cannot harm a terminal."""

from __future__ import annotations

import logging

from monitoring.daemon_log import LINE, PrintableFormatter


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
