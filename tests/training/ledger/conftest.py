"""A ledger on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.ledger.postgres import Server, installed, running_server
from tests.training.ledger.run_folders import Folder


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server; without PostgreSQL its tests are skipped, but not in continuous integration."""
    binaries = installed()
    if binaries is None:
        reason = "PostgreSQL is not installed: make test-tools"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with running_server(binaries) as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """An empty ledger on each kind of database; the empty URL is SQLite in status/."""
    if request.param == "sqlite":
        return ""
    server: Server = request.getfixturevalue("server")
    return server.emptied()


@pytest.fixture
def folder(tmp_path: Path, ledger_url: str) -> Iterator[Folder]:
    """An empty base folder with its ledger on each kind of database."""
    made = Folder(tmp_path / "base", ledger_url)
    yield made
    made.close()


@pytest.fixture
def sqlite_folder(tmp_path: Path) -> Iterator[Folder]:
    """An empty base folder with its ledger in status/."""
    made = Folder(tmp_path / "base")
    yield made
    made.close()
