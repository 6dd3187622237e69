"""logs/runs/: what each worker printed, bounded in size and in number."""

from __future__ import annotations

import contextlib
from pathlib import Path

from config import Paths
from training.jobs import JOB_ID

MAX_BYTES = 8 * 2**20
"""A log is set aside at this size, and what was set aside before is dropped: it never takes twice as much."""
OLDER = ".1"
_NOTE = b"(older lines are in %s; what was before them has been dropped)\n"


class RunLog:
    """One worker's log, written by one thread at a time; a full disk loses lines and nothing else."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def append(self, chunk: bytes) -> None:
        """Add what a worker printed."""
        with contextlib.suppress(OSError):
            with open(self._path, "ab") as log:
                log.write(chunk)
                size = log.tell()
            if size >= self._max_bytes:
                older = self._path.with_name(self._path.name + OLDER)
                self._path.replace(older)
                self._path.write_bytes(_NOTE % older.name.encode())


def drop_old_logs(paths: Paths, keep: int, current: int) -> int:
    """Remove all but the logs of the newest `keep` jobs, by number; return how many files went.

    The job with the number `current`, which is about to write one, is among them.
    """
    by_job: dict[int, list[Path]] = {current: []}
    for path in paths.run_logs.iterdir():
        match = JOB_ID.match(path.name)
        if match is not None:
            by_job.setdefault(int(match[1]), []).append(path)
    old = [path for number in sorted(by_job)[:-keep] if number != current for path in by_job[number]]
    for path in old:
        path.unlink(missing_ok=True)
    return len(old)
