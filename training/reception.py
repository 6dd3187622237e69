"""Where dropped files are received: the inbox is looked through, and what is complete is claimed."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

from config import Config, Paths
from errors import EnvironmentNotReady
from intake.inbox import Inbox
from training.claims import Claims, SetAside
from training.job_queue import JobQueue
from training.jobs import Job, JobStore

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 0.5
"""Files are claimed for so long at a stretch, then commands and the running job are looked after."""
SCAN_GAP_SECONDS = 0.1
"""However many events come, the inbox is not scanned more often."""
SHOWN_NAMES = 20


class Reception:
    """Makes jobs of settled files; what cannot be taken now is tried again later."""

    def __init__(
        self,
        paths: Paths,
        store: JobStore,
        config: Config,
        queue: JobQueue,
        clock: Callable[[], float],
        on_progress: Callable[[], None],
    ) -> None:
        """`on_progress` is called while a large file is copied."""
        self._inbox = Inbox(paths, config.inbox, clock)
        self._claims = Claims(paths, store, config, on_progress)
        self._queue = queue
        self._clock = clock
        self.look_at = clock()
        """When the inbox is to be looked through next."""
        self.is_quiet = False
        """Whether the last look found nothing that is, or soon may be, to be claimed."""
        self.cannot_claim: str | None = None
        """Why a file that is complete could not be taken."""

    @property
    def is_settling(self) -> bool:
        return bool(self._inbox.settling())

    @property
    def trouble(self) -> str | None:
        """Why files cannot be seen, or taken."""
        return self._inbox.trouble or self.cannot_claim

    @property
    def left_in_place(self) -> dict[str, str]:
        """Some of the things in the inbox that will not be taken, with the reason."""
        return dict(itertools.islice(self._inbox.problems.items(), SHOWN_NAMES))

    def recover(self) -> None:
        """Finish what a crash interrupted."""
        self._claims.recover()

    def withdraw(self, job: Job) -> None:
        """Move the original of a claimed job out of the inbox, if it still lies there."""
        self._claims.withdraw(job)

    def is_due(self) -> bool:
        return self._clock() >= self.look_at

    def hurry(self) -> None:
        """Look soon: something has happened in the inbox."""
        self.look_at = min(self.look_at, self._clock() + SCAN_GAP_SECONDS)

    def receive(self) -> bool:
        """Look through the inbox and make jobs of what is complete; return whether a trouble has ended."""
        started_at = self._clock()
        candidates = self._inbox.scan()
        trouble = None
        for candidate in candidates:
            try:
                claimed = self._claims.claim(candidate)
            except (OSError, EnvironmentNotReady) as error:
                trouble = f"cannot take inbox/{candidate.name}: {error}"
                continue
            if claimed is not None and not isinstance(claimed, SetAside):
                self._queue.add(claimed)
            if self._clock() - started_at > CLAIM_SECONDS:
                break
        before, self.cannot_claim = self.cannot_claim, trouble
        self.is_quiet = not candidates and not self._inbox.settling()
        is_more_to_do = bool(candidates) and trouble is None
        self.look_at = self._clock() + (
            SCAN_GAP_SECONDS if is_more_to_do else self._inbox.seconds_to_next_look()
        )
        return self._tell_trouble(before)

    def _tell_trouble(self, before: str | None) -> bool:
        if self.cannot_claim is not None and before is None:
            logger.warning("Could not claim: %s", self.cannot_claim)
        has_ended = self.cannot_claim is None and before is not None
        if has_ended:
            logger.info("Files can be claimed again")
        return has_ended
