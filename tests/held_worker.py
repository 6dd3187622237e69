"""The real worker, held in the middle of its version's test until it is told to end, or killed.

It says so by a note, ``held``: when some parts of the test are sealed and the next one is half measured.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from monitoring.events import NoteEvent, PhaseEvent
from tests.waiting import wait_until
from training import worker
from training.daemon_link import DaemonLink

SEALED_PARTS = 2
CHECKS_UNTIL_HELD = 2
"""One after each part, and one after each batch: the second is in the middle of the next part."""


class HoldingLink(DaemonLink):
    """A link through which nothing comes for a while."""

    _checks_left: int | None = None

    def emit(self, event: Any) -> None:
        super().emit(event)
        if isinstance(event, PhaseEvent) and (event.phase, event.done) == ("evaluating", SEALED_PARTS):
            self._checks_left = CHECKS_UNTIL_HELD

    def check(self) -> None:
        if self._checks_left is not None:
            self._checks_left -= 1
            if self._checks_left == 0:
                self._checks_left = None
                self.emit(NoteEvent(message="held"))
                wait_until(lambda: self.command is not None)
        super().check()


if __name__ == "__main__":
    vars(worker)["DaemonLink"] = HoldingLink
    os._exit(worker.main(sys.argv[1:]))
