"""Keeps the ledger in step with the run folders while the daemon works; the daemon never waits for it.

A thread reads what is new in the folders of changed jobs and writes it in batches. Whatever a database may
do, be locked, full, damaged or away, is told once and made up for later: the folders have it all.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from config import LedgerConfig, Paths
from errors import TrainboxError
from training.jobs import Job

if TYPE_CHECKING:
    from training.ledger.following import Follower

logger = logging.getLogger(__name__)

BATCH_SECONDS = 2.0
"""Changes are gathered for so long before they are written."""
RETRY_SECONDS = 10.0
"""Time between two attempts while the database cannot be written and nothing changes."""
STOP_SECONDS = 20.0
"""The end of the daemon waits no longer for the last rows."""


class LedgerKeeper:
    """The only writer of the ledger while its daemon lives."""

    def __init__(
        self,
        paths: Paths,
        config: LedgerConfig,
        *,
        batch_seconds: float = BATCH_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._paths = paths
        self._config = config
        self._batch_seconds = batch_seconds
        self._retry_seconds = retry_seconds
        self._news = threading.Condition()
        self._changed: set[str] = set()
        self._is_stopping = False
        self._follower: Follower | None = None
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self.trouble: str | None = None
        """Why the ledger is behind the directories; None when all is well."""

    def start(self) -> None:
        """Begin to catch up with the directories, in a thread of its own."""
        self._thread.start()

    def note(self, job: Job) -> None:
        """Take down that something about `job` has changed on disk; costs the caller a microsecond."""
        if job.job_id in self._changed:
            return
        with self._news:
            self._changed.add(job.job_id)
            self._news.notify()

    def stop(self) -> None:
        """Write what is left, if the database lets us within `STOP_SECONDS`."""
        with self._news:
            self._is_stopping = True
            self._news.notify()
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            logger.warning("Left the ledger behind the directories; the next start makes up for it")

    # The thread

    def _work(self) -> None:
        while True:
            is_last = self._is_stopping
            self._keep()
            if is_last:
                return
            self._wait()

    def _wait(self) -> None:
        """Wait for changes, but not for long where something is to be made up for."""
        with self._news:
            self._news.wait_for(lambda: self._is_stopping, self._batch_seconds)
            patience = None if self.trouble is None else self._retry_seconds
            self._news.wait_for(lambda: self._is_stopping or bool(self._changed), patience)

    def _keep(self) -> None:
        """Write what has changed; whatever goes wrong here concerns the ledger alone."""
        with self._news:
            changed, self._changed = self._changed, set()
        try:
            self._write(changed)
        except (TrainboxError, OSError) as error:
            self._tell(str(error))
        except Exception as error:
            logger.exception("The ledger met an error nobody foresaw")
            self._tell(repr(error))
        else:
            self._tell(None)

    def _write(self, changed: set[str]) -> None:
        if self._follower is None and self._is_nothing_there():
            return
        if self._follower is None:
            from training.ledger.following import Follower  # loads SQLAlchemy: 0.1 s and 11 MB

            self._follower = Follower(self._paths, self._config)
        self._follower.write(changed)

    def _is_nothing_there(self) -> bool:
        """Tell whether this base folder has never had a job, so that there is no ledger to keep yet."""
        return not (self._config.url or self._paths.ledger.exists() or any(self._paths.runs.iterdir()))

    def _tell(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self.trouble:
            logger.warning("The ledger is behind the directories and will catch up: %s", trouble)
        elif trouble is None and self.trouble is not None:
            logger.info("The ledger has caught up")
        self.trouble = trouble
