"""The control files of a base folder: how a person steers the daemon with `touch`.

``.pause`` is a level: it holds as long as the file lies there, also across restarts. ``.resume``, ``.skip``
and ``.stop`` are edges: each is consumed once. The text inside is the reason. What a command does is left to
the daemon.
"""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import durable
from config import Paths
from monitoring.events import now

logger = logging.getLogger(__name__)

Command = Literal["pause", "resume", "skip", "stop"]
_EDGES: tuple[Command, ...] = ("resume", "skip", "stop")
MAX_REASON_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One command of a person, as found."""

    command: Command
    reason: str | None
    received_at: datetime


class Control:
    """The one reader of the control files, with the same answer everywhere."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._reported: set[Command] = set()
        self._stuck: set[Command] = set()
        self.pause: Request | None = None
        """The pause that is in force, as of the last look."""

    def look(self) -> list[Request]:
        """Consume the edges and follow the level; return what is new, a new pause first.

        A resume removes ``.pause``, whichever of the two was made first.
        """
        edges = [request for command in _EDGES if (request := self._consume(command)) is not None]
        if any(request.command == "resume" for request in edges):
            self._remove("pause")
        was_paused = self.pause is not None
        found = self._read("pause")
        if found is None:
            self.pause = None
        elif self.pause is None:
            self.pause = found
        else:
            self.pause = replace(self.pause, reason=found.reason)
        is_new = self.pause is not None and not was_paused
        return [self.pause, *edges] if is_new and self.pause is not None else edges

    def discard_stop(self) -> None:
        """Consume a ``.stop`` that was there before the daemon: it was meant for an earlier one."""
        request = self._consume("stop")
        if request is not None:
            logger.info("Ignored a .stop older than this daemon (reason: %s)", request.reason or "none given")

    def _consume(self, command: Command) -> Request | None:
        request = self._read(command)
        if request is None:
            self._stuck.discard(command)
            return None
        return request if self._remove(command) else None

    def _remove(self, command: Command) -> bool:
        """Remove a control file for good; return False when it lies there still and was obeyed before."""
        path = self._paths.control(command)
        try:
            path.unlink(missing_ok=True)
            durable.fsync_folder(path.parent)
        except OSError as error:
            if command in self._stuck:
                return False
            logger.warning("Cannot remove %s (%s): obeyed once, remove it by hand", path, error.strerror)
            self._stuck.add(command)
        return True

    def _read(self, command: Command) -> Request | None:
        """Return the command if its file is there.

        Anything but a plain file of the daemon's user, of the base folder's owner or of root is reported once
        and ignored.
        """
        path = self._paths.control(command)
        try:
            found = path.lstat()
        except FileNotFoundError:
            self._reported.discard(command)
            return None
        if not stat.S_ISREG(found.st_mode):
            self._ignore(command, "it is not a plain file; remove it and `touch` it")
            return None
        if found.st_uid not in (0, os.geteuid(), path.parent.stat().st_uid):
            self._ignore(command, f"it belongs to user {found.st_uid}, to whom the base folder does not")
            return None
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            return Request(command, None, now())  # its presence is the signal
        except OSError:
            return None  # gone, or swapped for something else since the look; the next one tells
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            text = os.read(descriptor, MAX_REASON_BYTES).decode(errors="replace").strip()
        finally:
            os.close(descriptor)
        return Request(command, text or None, now())

    def _ignore(self, command: Command, reason: str) -> None:
        if command not in self._reported:
            logger.warning("Ignored %s: %s", self._paths.control(command), reason)
            self._reported.add(command)
