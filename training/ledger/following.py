"""The ledger brought up to the run folders: all that differs at first, then what has changed."""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from config import LedgerConfig, Paths
from training.ledger.database import Database, LedgerDamaged, known_sources, remove_job, write_run
from training.ledger.evaluations import write_evaluations
from training.ledger.readings import RunReader
from training.ledger.sources import fingerprint, run_ids

logger = logging.getLogger(__name__)

JOBS_A_TRANSACTION = 50


class Follower:
    """Writes the ledger of one base folder; after any failure it compares the whole again."""

    def __init__(self, paths: Paths, config: LedgerConfig) -> None:
        self._paths = paths
        self._database = Database(paths, config)
        self._is_current = False
        self._running: RunReader | None = None
        """What was read and written of the job that runs, so that only its new lines are read."""

    def write(self, changed: set[str]) -> None:
        """Write the jobs that changed, and at first or after a failure all whose folders say otherwise.

        A damaged file is set aside and made again. Raises EnvironmentNotReady while the database cannot be
        written, OSError while a run folder cannot be read.
        """
        try:
            self._write(changed)
        except LedgerDamaged as damage:
            logger.error("%s", damage)
            self._database.set_aside()
            self._write(changed)

    def _write(self, changed: set[str]) -> None:
        was_current, self._is_current = self._is_current and self._database.is_there(), False
        if not was_current:
            self._running = None
            self._database.upgrade()
            changed = changed | self._differing()
        todo = sorted(changed)
        for start in range(0, len(todo), JOBS_A_TRANSACTION):
            self._write_jobs(todo[start : start + JOBS_A_TRANSACTION])
        self._is_current = True

    def _write_jobs(self, job_ids: list[str]) -> None:
        """Write some jobs in one transaction."""
        running, self._running = self._running, None
        with self._database.transaction() as connection:
            for job_id in job_ids:
                running = self._write_job(connection, job_id, running)
        self._running = running

    def _write_job(self, connection: Connection, job_id: str, running: RunReader | None) -> RunReader | None:
        """Write one job, and return the reader of the one that runs now."""
        if running is not None and running.job_id == job_id:
            write_run(connection, running)
            if _runs(running):
                return running
            running = None  # read once more from the beginning: what stays is what a rebuild would write
        reader = RunReader(self._paths, job_id)
        write_run(connection, reader)
        return reader if _runs(reader) else running

    def _differing(self) -> set[str]:
        """Return the jobs whose rows may not be what their folders say; make up for all that runs no job."""
        job_ids = run_ids(self._paths)
        with self._database.transaction() as connection:
            sources = known_sources(connection)
            for job_id in sources.keys() - set(job_ids):
                remove_job(connection, job_id)
            write_evaluations(connection, self._paths)
        return {
            job_id
            for job_id in job_ids
            if sources.get(job_id) is None or sources[job_id] != fingerprint(self._paths, job_id)
        }


def _runs(reader: RunReader) -> bool:
    return reader.job is not None and reader.job.state == "running"
