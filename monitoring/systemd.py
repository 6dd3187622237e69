"""What the daemon tells systemd, where systemd listens; see sd_notify(3)."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

PINGS = 3
"""Signs of life within the time after which systemd takes us for dead."""
SEND_SECONDS = 1.0
"""The loop waits no longer than this for a systemd that does not read."""


class Notifier:
    """Sends state to systemd's socket; does nothing where there is none."""

    def __init__(
        self,
        address: str | None = None,
        watchdog_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`watchdog_seconds` is how long systemd waits for a sign of life; None means it does not."""
        self._address = address
        self._clock = clock
        self._ping_at = clock()
        self._is_heard = True
        self.ping_seconds = math.inf if watchdog_seconds is None else watchdog_seconds / PINGS
        """Longest time that may pass between two calls of `ping`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """Take the socket that systemd names, and whether it waits for a sign of life from this process."""
        is_watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC") if is_watched else None
        watchdog_seconds = None if microseconds is None else int(microseconds) / 1_000_000
        return cls(environment.get("NOTIFY_SOCKET"), watchdog_seconds)

    def ping(self) -> None:
        """Show systemd's watchdog that the daemon's loop goes round; to be called as often as one likes."""
        if self.ping_seconds < math.inf and self._clock() >= self._ping_at:
            self._ping_at = self._clock() + self.ping_seconds / 2
            self.send("WATCHDOG=1")

    def send(self, *assignments: str) -> None:
        """Send for instance ``READY=1`` and ``STATUS=idle``; the first of several failures is logged."""
        if self._address is None:
            return
        target = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.settimeout(SEND_SECONDS)
            try:
                notify.sendto("\n".join(assignments).encode(), target)
                self._is_heard = True
            except OSError as error:
                if self._is_heard:
                    logger.warning("Could not tell systemd our state, %s: %s", self._address, error)
                self._is_heard = False
