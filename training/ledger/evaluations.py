"""What the files of suite runs say, as rows of the ledger."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from config import Config, Paths
from errors import EnvironmentNotReady, IntegrityError
from evaluation.suites.scores import scores
from training.ledger.database import Database, LedgerDamaged
from training.ledger.tables import SUITE_RESULTS
from training.suite_records import read_records, record_files

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def record_evaluations(paths: Paths, config: Config) -> str | None:
    """Bring the ledger up to the files of suite runs; return why not where the database says no.

    That is made up for by the next time, by the daemon's next start, or by a rebuild.
    """
    try:
        database = Database(paths, config.ledger)
        database.upgrade()
        with database.transaction() as connection:
            write_evaluations(connection, paths)
    except (EnvironmentNotReady, LedgerDamaged) as error:
        return str(error)
    return None


def write_evaluations(connection: Connection, paths: Paths) -> None:
    """Write the rows of every file that changed, and remove those of files that are gone."""
    known = dict(connection.execute(select(SUITE_RESULTS.c.file, SUITE_RESULTS.c.source).distinct()).all())
    found = {str(file.relative_to(paths.base)): file for file in record_files(paths.evaluations)}
    for name in known.keys() - found.keys():
        connection.execute(delete(SUITE_RESULTS).where(SUITE_RESULTS.c.file == name))
    for name, file in found.items():
        if known.get(name) == _source(file):
            continue
        connection.execute(delete(SUITE_RESULTS).where(SUITE_RESULTS.c.file == name))
        rows = list(evaluation_rows(paths, file))
        if rows:
            connection.execute(insert(SUITE_RESULTS), rows)


def evaluation_rows(paths: Paths, file: Path) -> Iterator[Row]:
    """Yield a row for each level of a file's results, and one for all; none for a damaged file."""
    source = _source(file)
    try:
        records = read_records(file)
    except IntegrityError as error:
        logger.warning("%s", error)
        return
    header = records.header
    for score in scores(list(records.results.values())):
        low, high = score.interval
        yield {
            "file": str(file.relative_to(paths.base)),
            "level": "" if score.is_overall else score.level or "-",
            "model": header.model,
            "suite": header.suite,
            "suite_sha256": header.suite_sha256,
            "identity": header.identity,
            "suite_items": header.items,
            "items": score.items,
            "correct": score.correct,
            "accuracy": score.accuracy,
            "interval_low": low,
            "interval_high": high,
            "mean_score": score.mean_score,
            "format_rate": score.format_rate,
            "cut_off": score.cut_off,
            "updated_at": datetime.fromtimestamp(file.stat().st_mtime, UTC),
            "source": source,
        }


def _source(file: Path) -> str:
    facts = file.stat()
    return f"{facts.st_size}:{facts.st_mtime_ns}"
