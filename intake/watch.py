"""Wakes the daemon early when something changes; what changed is found out by looking.

File events get lost, double and overtake their data, so they carry no meaning here: without any, the next
look comes at its time.
"""

from __future__ import annotations

import logging
import os
import queue
from pathlib import Path
from typing import Protocol

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer

from config import Paths
from intake.inbox import OWN_FOLDERS

logger = logging.getLogger(__name__)

_EVENTS: list[type[FileSystemEvent]] = [
    *(FileCreatedEvent, FileMovedEvent, FileClosedEvent, DirCreatedEvent, DirMovedEvent)
]
_CONTROL_NAMES = frozenset({".pause", ".resume", ".skip", ".stop"})


class Bell:
    """Something to wait for that a thread and a signal handler may ring."""

    def __init__(self) -> None:
        # SimpleQueue.put is the one way to wake a thread that is safe inside a signal handler.
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def ring(self) -> None:
        if self._rings.empty():
            self._rings.put(None)

    def wait(self, timeout_seconds: float) -> bool:
        """Sleep until the bell rings or the time is over; tell whether it rang."""
        try:
            self._rings.get(timeout=max(timeout_seconds, 0.0))
        except queue.Empty:
            return False
        return True


class _Stoppable(Protocol):
    def stop(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


class Watch(FileSystemEventHandler):
    """Rings a bell when a file comes into the inbox or a control file into the base folder."""

    def __init__(self, paths: Paths, bell: Bell) -> None:
        self._paths = paths
        self._bell = bell
        self._observer: _Stoppable | None = None

    def start(self) -> None:
        """Begin to watch; where the system has no watches left, polling has to do."""
        observer = Observer()
        try:
            observer.schedule(self, str(self._paths.inbox), recursive=True, event_filter=_EVENTS)
            observer.schedule(self, str(self._paths.base), recursive=False, event_filter=_EVENTS)
            observer.start()
        except OSError as error:
            logger.warning("Cannot watch the folders, looking by the clock only: %s", error.strerror)
        else:
            self._observer = observer

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
            self._observer = None

    def dispatch(self, event: FileSystemEvent) -> None:
        """Ring for whatever may be new to us; called in the observer's thread."""
        for name in (event.src_path, event.dest_path):
            if name and self._is_of_interest(Path(os.fsdecode(name))):
                self._bell.ring()

    def _is_of_interest(self, path: Path) -> bool:
        if path.parent == self._paths.base:
            return path.name in _CONTROL_NAMES
        return path.is_relative_to(self._paths.inbox) and (
            path.relative_to(self._paths.inbox).parts[:1] not in {(name,) for name in OWN_FOLDERS}
        )
