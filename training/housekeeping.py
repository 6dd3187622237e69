"""What the daemon does beside training: copies of new versions, and retention.

It runs in a thread, since a copy to a slow disk takes longer than a person or a watchdog waits. What goes
wrong is told and tried again; it never keeps a file from being trained.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from config import Config, Paths
from errors import IntegrityError, TrainboxError
from training.backups import Backups, housekeeping
from training.retention import Retention
from training.versions import VersionStore

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""First wait after something went wrong; it doubles up to `LONGEST_RETRY_SECONDS`."""
LONGEST_RETRY_SECONDS = 1800.0
LOCK_SECONDS = 1.0
STOP_SECONDS = 5.0


class Housekeeper:
    """Keeps the copies complete and the folders within bounds, whenever it is woken."""

    def __init__(
        self,
        paths: Paths,
        config: Config,
        *,
        on_rest: Callable[[], None] = lambda: None,
        retry_seconds: float = RETRY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_rest` is called whenever there is nothing left to do for now."""
        self._paths = paths
        self._config = config
        self._on_rest = on_rest
        self._first_retry_seconds = retry_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._is_woken = threading.Event()
        self._is_stopping = threading.Event()
        self._is_at_work = False
        self._thread = threading.Thread(target=self._work, name="housekeeping", daemon=True)
        self.trouble: str | None = None
        """What went wrong and is tried again."""

    @property
    def is_busy(self) -> bool:
        """Tell whether there is something to do now; what waits for another try does not count."""
        return self._thread.is_alive() and (self._is_at_work or self._is_woken.is_set())

    def start(self) -> None:
        """Begin, with what an earlier process may have left undone."""
        self.wake()
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be something to do."""
        self._is_woken.set()

    def stop(self) -> None:
        """End; a copy that is not complete by then is made again another time."""
        self._is_stopping.set()
        self._is_woken.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        retry_at: float | None = None
        while True:
            self._is_woken.wait(None if retry_at is None else max(0.0, retry_at - self._clock()))
            if self._is_stopping.is_set():
                return
            self._is_at_work = True
            self._is_woken.clear()
            retry_at = None if self._is_tidy() else self._clock() + self._retry_seconds
            self._is_at_work = False
            self._on_rest()

    def _is_tidy(self) -> bool:
        """Do all there is to do; return whether it was done."""
        try:
            with housekeeping(self._paths, LOCK_SECONDS):
                self._tidy()
        except (OSError, TrainboxError) as error:
            if str(error) != self.trouble:
                logger.warning("Housekeeping is tried again: %s", error)
                self._retry_seconds = self._first_retry_seconds
            else:
                self._retry_seconds = min(2 * self._retry_seconds, LONGEST_RETRY_SECONDS)
            self.trouble = str(error)
            return False
        self.trouble, self._retry_seconds = None, self._first_retry_seconds
        return True

    def _tidy(self) -> None:
        store = VersionStore(self._paths)
        backups = Backups(self._paths, store, self._config.backup)
        retention = Retention(self._paths, store, backups, self._config.retention.max_bytes)
        damaged: list[str] = []
        try:
            for version in backups.missing():
                if self._is_stopping.is_set():
                    return
                try:
                    backups.back_up(version)
                except IntegrityError as error:
                    damaged.append(str(error))
            if damaged:
                raise IntegrityError("; ".join(damaged))
        finally:
            # A second disk that is away is no reason to fill the first.
            retention.carry_out()
