"""The database behind the ledger: SQLite in status/, or PostgreSQL by its URL; and how rows get into it."""

from __future__ import annotations

import contextlib
import glob
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    URL,
    Connection,
    Select,
    Table,
    create_engine,
    delete,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

import durable
from config import LedgerConfig, Paths
from errors import ConfigError, EnvironmentNotReady, IntegrityError
from training.ledger.readings import RunReader
from training.ledger.tables import JOBS, METADATA, METRICS, REVISION, SUITE_RESULTS

if TYPE_CHECKING:
    from sqlalchemy.dialects.postgresql import Insert as PostgresqlInsert
    from sqlalchemy.dialects.sqlite import Insert as SqliteInsert

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
LOCK_SECONDS = 1.0
"""How long is waited for another program that holds the database."""
CONNECT_SECONDS = 3
"""A server that does not answer for so long is away."""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class LedgerDamaged(IntegrityError):
    """The ledger's file is no database any more: it is set aside and made again."""


class Database:
    """One ledger; every transaction has a connection of its own, so that nothing is held between them."""

    def __init__(self, paths: Paths, config: LedgerConfig) -> None:
        """Raise ConfigError when `ledger.url` cannot be understood; nothing is opened yet."""
        url = _url(config.url) if config.url else URL.create("sqlite", database=str(paths.ledger))
        is_sqlite = url.get_backend_name() == "sqlite"
        self.file = Path(url.database or "") if is_sqlite else None
        """The file of an SQLite ledger."""
        self.name = str(self.file or url.render_as_string(hide_password=True))
        patience: dict[str, object] = {"timeout": LOCK_SECONDS}
        if not is_sqlite:
            patience = {
                "connect_timeout": CONNECT_SECONDS,
                "tcp_user_timeout": 1000 * CONNECT_SECONDS,
                "options": f"-c lock_timeout={1000 * LOCK_SECONDS:.0f}",
            }
        try:
            self._engine = create_engine(url, poolclass=NullPool, connect_args=patience)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"ledger.url: {error}; install it with: pip install -e '.[postgres]'"
            ) from error
        if is_sqlite:
            event.listen(self._engine, "connect", _leave_transactions_to_us)
            event.listen(self._engine, "begin", _begin)

    def is_there(self) -> bool:
        """Tell whether there is something to open: for SQLite the file, a server may only be asked."""
        return self.file is None or self.file.exists()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Do all of what is inside, or nothing.

        Raises LedgerDamaged when the file is damaged, EnvironmentNotReady for whatever else a database
        cannot do now.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            reason = str(cause).strip().partition("\n")[0]
            if getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
                raise self._damaged(reason) from error
            raise EnvironmentNotReady(f"{self.name}: {reason}") from error

    def upgrade(self) -> None:
        """Bring the tables to those of today; raise LedgerDamaged when the file is damaged."""
        with self.transaction() as connection:
            self.check_file(connection)
            revision = _revision(connection)
            if revision is None:
                create_tables(connection)
            elif revision != REVISION:
                _migrate(connection, self.name)

    def check_file(self, connection: Connection) -> None:
        """Raise LedgerDamaged when SQLite finds its file damaged; 0.3 s for a ledger of 140 MB."""
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar() if self.file else "ok"
        if verdict != "ok":
            raise self._damaged(str(verdict))

    def check(self, connection: Connection) -> None:
        """Raise EnvironmentNotReady unless the tables are those of today."""
        revision = _revision(connection)
        if revision != REVISION:
            raise EnvironmentNotReady(
                f"{self.name}: found tables of revision {revision or 'none'}, expected {REVISION}; "
                "start the daemon, or make the ledger again with: trainbox ledger rebuild"
            )

    def _damaged(self, reason: str) -> LedgerDamaged:
        remedy = "the daemon sets it aside and makes it again, and so does: trainbox ledger rebuild"
        return LedgerDamaged(f"{self.name}: {reason}; the file is damaged; {remedy}")

    def set_aside(self) -> Path:
        """Rename a damaged file and what belongs to it, so that a new one can be begun; return its name."""
        assert self.file is not None, "only a file can be set aside"
        name, number = self.file.name, 1
        while any(self.file.parent.glob(f"{glob.escape(name)}.damaged-{number}*")):
            number += 1
        place = self.file.with_name(f"{name}.damaged-{number}")
        journal = self.file.with_name(f"{name}-journal")
        if journal.exists():  # a new file must never be rolled back by it
            durable.rename_new(journal, self.file.with_name(f"{place.name}-journal"))
        durable.rename_new(self.file, place)
        durable.fsync_folder(place.parent)
        logger.warning("Set aside the damaged ledger as %s", place)
        return place


def _url(name: str) -> URL:
    try:
        return make_url(name)
    except (SQLAlchemyError, ValueError) as error:
        raise ConfigError(f"ledger.url: {error}") from error


def drop_tables(connection: Connection) -> None:
    """Remove the ledger from a database, whatever revision it has."""
    METADATA.drop_all(connection)
    connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


def create_tables(connection: Connection) -> None:
    """Make the tables of today in a database that has none, as all migrations together would."""
    METADATA.create_all(connection)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": REVISION})


def known_sources(connection: Connection) -> dict[str, str | None]:
    """Return for each job in the ledger what its row was made from."""
    rows = connection.execute(select(JOBS.c.id, JOBS.c.sources))
    return {row.id: row.sources for row in rows}


def list_jobs(connection: Connection) -> list[dict[str, Any]]:
    """Return the rows of all jobs by their numbers."""
    return _rows(connection, select(JOBS).order_by(JOBS.c.number))


def list_metrics(connection: Connection, job_id: str) -> list[dict[str, Any]]:
    """Return the rows of a job's steps, in order."""
    chosen = select(METRICS).where(METRICS.c.job_id == job_id).order_by(METRICS.c.step)
    return _rows(connection, chosen)


def list_suite_results(connection: Connection) -> list[dict[str, Any]]:
    """Return the rows of all suite runs, by file and level."""
    order = (SUITE_RESULTS.c.file, SUITE_RESULTS.c.level)
    return _rows(connection, select(SUITE_RESULTS).order_by(*order))


def remove_job(connection: Connection, job_id: str) -> None:
    """Remove a job and its steps."""
    connection.execute(delete(METRICS).where(METRICS.c.job_id == job_id))
    connection.execute(delete(JOBS).where(JOBS.c.id == job_id))


def write_run(connection: Connection, reader: RunReader) -> None:
    """Write what `reader` reads now: all of a run when it is new, else what was added since."""
    for batch in reader.read():
        if batch.cut_to is not None:
            is_later = (METRICS.c.job_id == reader.job_id) & (METRICS.c.step > batch.cut_to)
            connection.execute(delete(METRICS).where(is_later))
        _upsert(connection, METRICS, list(batch.steps.values()))
        _upsert(connection, METRICS, list(batch.evaluations.values()))
    if reader.job is None:
        remove_job(connection, reader.job_id)
    else:
        _upsert(connection, JOBS, [reader.row()])


def _upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or set in those that are there the columns that are given."""
    if not rows:
        return
    statement = _insert(connection, table)
    keys = [column.name for column in table.primary_key]
    given = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=given), rows)


def _rows(connection: Connection, chosen: Select[Any]) -> list[dict[str, Any]]:
    """Return rows by plain names: SQLAlchemy's own are no keys for JSON."""
    return [
        {str(name): value for name, value in row.items()} for row in connection.execute(chosen).mappings()
    ]


def _insert(connection: Connection, table: Table) -> SqliteInsert | PostgresqlInsert:
    """Return the statement of this database, the only one of which the module is loaded."""
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as insert_into_sqlite

        return insert_into_sqlite(table)
    from sqlalchemy.dialects.postgresql import insert as insert_into_postgresql

    return insert_into_postgresql(table)


def _revision(connection: Connection) -> str | None:
    """Return the last migration that was run; empty before the first, None where there is no ledger."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar() or ""


def _migrate(connection: Connection, name: str) -> None:
    """Run the migrations that are missing; alembic, which takes 8 MB, is only loaded when there are any."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from alembic import command
    from alembic.config import Config as AlembicConfig
    from alembic.util import CommandError

    alembic_config = AlembicConfig()
    alembic_config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    alembic_config.attributes["connection"] = connection
    try:
        command.upgrade(alembic_config, "head")
    except CommandError as error:
        raise EnvironmentNotReady(
            f"{name}: {error}; it was made by a later trainbox: use that one, or remove this ledger"
        ) from error


def _leave_transactions_to_us(connection: sqlite3.Connection, record: object) -> None:
    """Keep Python's sqlite3 from beginning and ending transactions by rules of its own."""
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
