"""What the daemon tells systemd, where systemd listens; see sd_notify(3)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Notifier:
    """Sends state to systemd's socket; does nothing where there is none."""

    def __init__(self, address: str | None = None, has_watchdog: bool = False) -> None:
        self._address = address
        self._has_watchdog = has_watchdog

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Notifier:
        """Take the socket that systemd names, and whether it waits for a sign of life from this process."""
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        return cls(environment.get("NOTIFY_SOCKET"), watched and "WATCHDOG_USEC" in environment)

    def ping(self) -> None:
        """Show systemd's watchdog that the daemon's loop goes round."""
        if self._has_watchdog:
            self.send("WATCHDOG=1")

    def send(self, *assignments: str) -> None:
        """Send for instance ``READY=1`` and ``STATUS=idle``; a socket that is gone is logged once."""
        if self._address is None:
            return
        target = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            try:
                notify.sendto("\n".join(assignments).encode(), target)
            except OSError as error:
                logger.warning("Stopped telling systemd our state, %s: %s", self._address, error)
                self._address = None
