"""status/alerts.jsonl: the alerts that began or ended while no job ran; those of a run lie among its events.

Only the daemon writes the file, one event a line, the newest last; it never grows beyond `MOST_BYTES`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import durable
from monitoring.events import AlertEvent, encode_event

logger = logging.getLogger(__name__)

MOST_BYTES = 256 << 10
"""Some 500 alerts; beyond it the older half goes."""


class AlertLog:
    """Keeps the file; one at a time, in the daemon."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes

    def keep(self, alert: AlertEvent) -> None:
        """Append an alert; that it cannot be written is logged and stops nothing."""
        try:
            durable.append_line(self._path, encode_event(alert))
            if self._path.stat().st_size > self._most_bytes:
                durable.write_bytes(self._path, self._newer_half())
        except OSError as error:
            logger.warning("Cannot keep an alert in %s: %s", self._path, error.strerror)

    def _newer_half(self) -> bytes:
        """Return the newest lines, whole, up to half of what may be kept."""
        return self._path.read_bytes()[-self._most_bytes // 2 :].partition(b"\n")[2]
