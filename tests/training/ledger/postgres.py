"""A PostgreSQL server of the tests' own: a fresh cluster on a free port, gone with the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

START_SECONDS = 120.0


@dataclass
class Server:
    """A PostgreSQL server on a port of its own, with a fresh cluster."""

    folder: Path
    binaries: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        listen = ("-c", "listen_addresses=127.0.0.1", "-p", str(self.port), "-k", str(self.folder))
        careless = ("-c", "fsync=off", "-c", "max_connections=20", "-c", "shared_buffers=16MB")
        command = [str(self.binaries / "postgres"), "-D", str(self.folder / "data"), *listen, *careless]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=owner())
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def answers(self) -> bool:
        try:
            with psycopg.connect(self._address, connect_timeout=3):
                return True
        except psycopg.OperationalError:
            return False

    def stop(self) -> None:
        """End it at once; with fsync off that is no loss to anybody."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def emptied(self) -> str:
        """Empty the one database and return its URL; a fresh one for each test would take a second."""
        with psycopg.connect(self._address, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.url("postgres")

    @property
    def _address(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=postgres"


def owner() -> str | None:
    """Return whom the server runs as: it refuses root."""
    return "postgres" if os.geteuid() == 0 else None


def installed() -> Path | None:
    """Return the newest installation's programs, or None when PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def running_server(binaries: Path) -> Iterator[Server]:
    """Make a cluster, and run a server on it."""
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    cluster = ["-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
    command = [str(binaries / "initdb"), *cluster, "--no-sync"]
    subprocess.run(command, user=owner(), check=True, capture_output=True, cwd=folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Server(folder, binaries, port)
    made.start()
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder)
