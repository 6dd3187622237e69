"""The worker's line to the daemon: commands come in, events and heartbeats go out."""

from __future__ import annotations

import logging
import threading
from io import FileIO
from typing import Literal, get_args

import orjson
import psutil

from monitoring.events import Event, EventWriter, HeartbeatEvent

logger = logging.getLogger(__name__)

Command = Literal["pause", "stop", "skip"]
HEARTBEAT_SECONDS = 2.0


class Interrupted(Exception):
    """A command ended what was being done; the job is left so that it can go on, except after a skip."""

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.command = command


class DaemonLink:
    """What the daemon said last, and the way to answer it."""

    def __init__(self, events: EventWriter, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self.command: Command | None = None
        self.is_listening = False
        self._events = events
        self._heartbeat_seconds = heartbeat_seconds
        self._has_moved = threading.Event()
        self._process = psutil.Process()

    def listen(self, commands: FileIO) -> None:
        """Start reading commands, one JSON line each, until the daemon closes its end."""
        self.is_listening = True
        threading.Thread(target=self._read, args=(commands,), name="commands", daemon=True).start()

    def start_heartbeat(self) -> None:
        """Start telling the daemon that this process makes progress, as long as it does."""
        threading.Thread(target=self._pulse, name="heartbeat", daemon=True).start()

    def emit(self, event: Event) -> None:
        """Send one event; it counts as progress."""
        self._events.emit(event)
        self._has_moved.set()

    def beat(self) -> None:
        """Note progress; cheap enough for every batch."""
        self._has_moved.set()

    def check(self) -> None:
        """Note progress, and raise Interrupted when a command has come."""
        self.beat()
        if self.command is not None:
            raise Interrupted(self.command)

    def _read(self, commands: FileIO) -> None:
        for line in commands:
            self._receive(line)
        self.is_listening = False

    def _receive(self, line: bytes) -> None:
        try:
            command = orjson.loads(line)["command"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            command = None
        if command in get_args(Command):
            logger.info("Received the command %s", command)
            self.command = command
        else:
            logger.error("Received %r, expected {'command': one of %s}", line, get_args(Command))

    def _pulse(self) -> None:
        """Send a heartbeat only when something has moved since the last: a thread alone proves nothing."""
        pause = threading.Event()
        while not pause.wait(self._heartbeat_seconds):
            if self._has_moved.is_set():
                self._has_moved.clear()
                self._events.emit(HeartbeatEvent(rss_bytes=self._process.memory_info().rss))
