"""A curve of bounded length: what a chart needs of a series that may be very long."""

from __future__ import annotations


class ThinnedHistory:
    """Keeps points of a growing series, evenly spaced, and always the newest.

    It keeps every point at first; when there are twice as many as `limit`, every other one is dropped and
    only every second is taken from then on, and so forth.
    """

    def __init__(self, limit: int = 200) -> None:
        self._limit = limit
        self._stride = 1
        self._seen = 0
        self._kept: list[tuple[int, float]] = []
        self._newest: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Take the next point; steps do not have to be in order."""
        self._newest = (step, value)
        if self._seen % self._stride == 0:
            self._kept.append(self._newest)
        self._seen += 1
        if len(self._kept) >= 2 * self._limit:
            self._kept = self._kept[::2]
            self._stride *= 2

    def points(self) -> tuple[tuple[int, float], ...]:
        """Return at most twice `limit` points and the newest."""
        if self._newest is None or self._kept[-1] == self._newest:
            return tuple(self._kept)
        return (*self._kept, self._newest)
