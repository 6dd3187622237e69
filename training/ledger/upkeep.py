"""The ledger made again from the directories, and compared with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from config import Config, Paths
from errors import UsageError
from training.ledger.database import (
    Database,
    LedgerDamaged,
    create_tables,
    drop_tables,
    list_jobs,
    list_metrics,
    list_suite_results,
    write_run,
)
from training.ledger.evaluations import evaluation_rows, write_evaluations
from training.ledger.readings import RunReader
from training.ledger.sources import run_ids
from training.suite_records import record_files

_NO_FACTS = frozenset({"sources", "source"})


def rebuild_ledger(paths: Paths, config: Config) -> int:
    """Make the whole ledger again in one transaction and return how many jobs it has.

    The caller holds the daemon's lock. A damaged file is set aside. Raises EnvironmentNotReady when the
    database cannot be written; then it is as it was.
    """
    database = Database(paths, config.ledger)
    try:
        return _rebuild(database, paths)
    except LedgerDamaged:
        database.set_aside()
        return _rebuild(database, paths)


def recorded_jobs(paths: Paths, config: Config) -> list[dict[str, Any]]:
    """Return the rows of all jobs as the ledger has them, by number; UsageError when there is no ledger.

    Raises EnvironmentNotReady when the database cannot be read, IntegrityError when it is damaged.
    """
    database = Database(paths, config.ledger)
    if not database.is_there():
        raise UsageError(
            f"{database.name}: there is no ledger yet; start the daemon, or make it with: "
            "trainbox ledger rebuild"
        )
    with database.transaction() as connection:
        database.check(connection)
        return list_jobs(connection)


def ledger_differences(paths: Paths, config: Config) -> list[str]:
    """Say, one sentence each, where the ledger differs from what the directories say now.

    With a daemon at work a difference of a few seconds is no fault. Raises EnvironmentNotReady when the
    database cannot be read, IntegrityError when it is damaged.
    """
    database = Database(paths, config.ledger)
    job_ids = run_ids(paths)
    if not database.is_there():
        return [f"{database.name}: there is no ledger"] if job_ids else []
    with database.transaction() as connection:
        database.check(connection)
        jobs = {str(row["id"]): row for row in list_jobs(connection)}
        differences = [
            f"{job_id}: in the ledger, but no run folder" for job_id in jobs if job_id not in job_ids
        ]
        for job_id in job_ids:
            job, metrics = read_run(paths, job_id)
            differences += _differences(job_id, jobs.get(job_id), job)
            known = {int(row["step"]): row for row in list_metrics(connection, job_id)}
            for step in sorted(known.keys() | metrics.keys()):
                differences += _differences(f"{job_id} step {step}", known.get(step), metrics.get(step))
        recorded = {(row["file"], row["level"]): row for row in list_suite_results(connection)}
    files = record_files(paths.evaluations)
    said = {(row["file"], row["level"]): row for file in files for row in evaluation_rows(paths, file)}
    for key in sorted(recorded.keys() | said.keys()):
        differences += _differences(" ".join(key).strip(), recorded.get(key), said.get(key))
    return differences


def read_run(paths: Paths, job_id: str) -> tuple[dict[str, Any] | None, dict[int, dict[str, Any]]]:
    """Return the rows a run folder makes: its job, and its steps by number."""
    reader = RunReader(paths, job_id)
    metrics: dict[int, dict[str, Any]] = {}
    for batch in reader.read():
        if batch.cut_to is not None:
            metrics = {step: row for step, row in metrics.items() if step <= batch.cut_to}
        for step, row in batch.steps.items():
            metrics.setdefault(step, {}).update(row)
        for step, evaluation in batch.evaluations.items():
            metrics.setdefault(step, {}).update(evaluation)
    return (None, {}) if reader.job is None else (reader.row(), metrics)


def _rebuild(database: Database, paths: Paths) -> int:
    with database.transaction() as connection:
        database.check_file(connection)
        drop_tables(connection)
        create_tables(connection)
        for job_id in run_ids(paths):
            write_run(connection, RunReader(paths, job_id))
        write_evaluations(connection, paths)
        return len(list_jobs(connection))


def _differences(
    name: str, recorded: Mapping[str, Any] | None, said: Mapping[str, Any] | None
) -> Iterator[str]:
    """Compare one row; a column that the directories say nothing of must be empty."""
    if said is None or recorded is None:
        if said is not None:
            yield f"{name}: missing from the ledger"
        elif recorded is not None:
            yield f"{name}: in the ledger, but its directory does not say so"
        return
    for column, value in recorded.items():
        if column not in _NO_FACTS and value != said.get(column):
            yield f"{name}: {column} is {value!r} in the ledger, {said.get(column)!r} by its directory"
