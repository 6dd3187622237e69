"""When to try again what the machine did not allow: each time after twice the wait, until it is allowed."""

from __future__ import annotations

from collections.abc import Callable

LONGEST_SECONDS = 300.0


class Retry:
    """The next try, and how long the wait after a further failure is."""

    def __init__(self, first_seconds: float, clock: Callable[[], float]) -> None:
        self._first_seconds = first_seconds
        self._clock = clock
        self.seconds = first_seconds
        """The wait that the next failure begins."""
        self.due_at: float | None = None
        """Time of the next try; None while nothing is put off."""

    @property
    def is_waiting(self) -> bool:
        """Whether something is put off and its time has not come."""
        return self.due_at is not None and self._clock() < self.due_at

    def begin(self) -> None:
        """Try now."""
        self.due_at = None

    def put_off(self) -> None:
        """Wait, and longer the next time; after a success it is the first wait again."""
        self.due_at = self._clock() + self.seconds
        self.seconds = min(2 * self.seconds, LONGEST_SECONDS)

    def look_again(self) -> None:
        """Wait for what costs little to look at: never longer than the first time."""
        self.due_at = self._clock() + self._first_seconds

    def succeed(self) -> None:
        """Forget how often it failed."""
        self.seconds = self._first_seconds
