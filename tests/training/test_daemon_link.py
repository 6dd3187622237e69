"""The worker's line to the daemon, over real pipes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from monitoring.events import EventWriter, NoteEvent
from tests.waiting import wait_until
from training.daemon_link import DaemonLink, Interrupted


@dataclass
class Line:
    """Both ends of a link."""

    link: DaemonLink
    events: int
    commands: int

    def read(self) -> list[dict[str, Any]]:
        """Return what has been sent and not read yet."""
        os.set_blocking(self.events, False)
        try:
            return [json.loads(line) for line in os.read(self.events, 1 << 16).splitlines()]
        except BlockingIOError:
            return []


@pytest.fixture
def line() -> Iterator[Line]:
    events, events_in = os.pipe()
    commands_out, commands = os.pipe()
    link = DaemonLink(EventWriter(events_in), heartbeat_seconds=0.02)
    with open(commands_out, "rb", buffering=0) as incoming:
        link.listen(incoming)
        yield Line(link, events, commands)
        os.close(commands)
        wait_until(lambda: not link.is_listening)
    os.close(events)


def test_a_command_is_seen_at_the_next_check(line: Line) -> None:
    line.link.check()
    os.write(line.commands, b'{"command": "pause"}\n')
    wait_until(lambda: line.link.command is not None)
    with pytest.raises(Interrupted) as interrupted:
        line.link.check()
    assert interrupted.value.command == "pause"


@pytest.mark.parametrize("rubbish", [b"nonsense\n", b'{"command": "dance"}\n', b"[]\n", b"{}\n"])
def test_rubbish_is_no_command_and_the_next_one_still_counts(rubbish: bytes, line: Line) -> None:
    os.write(line.commands, rubbish)
    os.write(line.commands, b'{"command": "stop"}\n')
    wait_until(lambda: line.link.command is not None)
    assert line.link.command == "stop"


def test_a_heart_beats_only_while_something_moves(line: Line) -> None:
    line.link.start_heartbeat()
    line.link.beat()
    wait_until(lambda: bool(line.read()))
    # Many beats long, nothing moves and nothing is said.
    time.sleep(0.2)
    assert line.read() == []
    line.link.beat()
    beats: list[dict[str, Any]] = []

    def has_beaten() -> bool:
        beats.extend(line.read())
        return bool(beats)

    wait_until(has_beaten)
    assert [beat["event"] for beat in beats] == ["heartbeat"]
    assert beats[0]["rss_bytes"] > 1_000_000


def test_events_arrive_as_they_are_sent(line: Line) -> None:
    line.link.emit(NoteEvent(message="one"))
    line.link.emit(NoteEvent(message="two"))
    assert [event["message"] for event in line.read()] == ["one", "two"]
