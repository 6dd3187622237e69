"""Tables made at once are those that the migrations make; a damaged file is told from a busy one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from config import LedgerConfig, Paths, load_config
from errors import ConfigError, EnvironmentNotReady
from tests.training.ledger.run_folders import Folder
from training.ledger.database import MIGRATIONS, Database, LedgerDamaged
from training.ledger.tables import METADATA, REVISION


@pytest.fixture
def database(folder: Folder) -> Database:
    return Database(folder.paths, folder.config.ledger)


def migrations() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def test_the_migrations_make_the_tables_of_today(database: Database) -> None:
    config = migrations()
    with database.transaction() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
        database.check(connection)


def test_tables_made_at_once_bear_the_newest_revision(database: Database) -> None:
    assert ScriptDirectory.from_config(migrations()).get_current_head() == REVISION
    database.upgrade()
    with database.transaction() as connection:
        database.check(connection)
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_an_older_ledger_is_brought_up_by_its_migrations(database: Database) -> None:
    """Here by all of them, from before the first; what else is in the database stays."""
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE of_somebody (x INTEGER)"))
    database.upgrade()
    with database.transaction() as connection:
        database.check(connection)
        assert connection.dialect.has_table(connection, "of_somebody")


def test_a_ledger_of_a_later_release_is_left_alone(database: Database) -> None:
    database.upgrade()
    with database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(EnvironmentNotReady, match="made by a later trainbox"):
        database.upgrade()
    with pytest.raises(EnvironmentNotReady, match="9999"), database.transaction() as connection:
        database.check(connection)


def test_a_transaction_is_done_as_a_whole_or_not_at_all(database: Database) -> None:
    """Tables too, so that no crash leaves half of them."""
    with pytest.raises(EnvironmentNotReady), database.transaction() as connection:
        METADATA.create_all(connection)
        connection.execute(text("SELECT * FROM nowhere"))
    with database.transaction() as connection:
        assert not connection.dialect.has_table(connection, "training_metrics")


def test_a_locked_file_is_waited_for_and_then_named(sqlite_folder: Folder) -> None:
    database = Database(sqlite_folder.paths, LedgerConfig())
    database.upgrade()
    other = sqlite3.connect(sqlite_folder.paths.ledger)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(EnvironmentNotReady, match=r"ledger\.db: database is locked"):
        database.upgrade()
    other.close()


@pytest.mark.parametrize("where", ["head", "middle"])
def test_a_damaged_file_is_told_from_a_busy_one_and_set_aside(sqlite_folder: Folder, where: str) -> None:
    database = Database(sqlite_folder.paths, LedgerConfig())
    database.upgrade()
    path = sqlite_folder.paths.ledger
    with open(path, "r+b") as file:
        file.seek(0 if where == "head" else 4096)
        file.write(b"\xa5" * 4000)
    with pytest.raises(LedgerDamaged, match="damaged"):
        database.upgrade()
    path.with_name("ledger.db-journal").write_bytes(b"of the damaged one")
    assert database.set_aside().name == "ledger.db.damaged-1"
    assert not path.exists()
    assert path.with_name("ledger.db.damaged-1-journal").exists()
    assert not path.with_name("ledger.db-journal").exists()
    database.upgrade()
    path.write_bytes(b"again")
    assert database.set_aside().name == "ledger.db.damaged-2"


@pytest.mark.parametrize("url", ["mysql://localhost/x", "ledger.db", "postgresql://localhost/x"])
def test_a_url_of_another_kind_is_a_configuration_error(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        load_config(tmp_path, [f"ledger.url={url}"])


def test_a_url_without_sense_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        Database(Paths(tmp_path), LedgerConfig(url="postgresql+psycopg://host:port/x"))


def test_a_base_folder_may_bear_any_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "100 % größer?x#y")
    Database(folder.paths, LedgerConfig()).upgrade()
    assert folder.paths.ledger.stat().st_size > 0
