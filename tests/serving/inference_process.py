"""A real `trainbox serve` on a real port, and what is needed to look at it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import openai

from config import Paths, load_config
from serving.client import InferenceClient, find_server
from tests.daemon_base import LONG, Base
from tests.waiting import PATIENCE_SECONDS, wait_until

ROOT = Path(__file__).parent.parent.parent


class ServerProcess:
    """Runs `trainbox serve` on a base folder."""

    def __init__(self, paths: Paths, *settings: str) -> None:
        self.paths = paths
        self.log = paths.base / "server.log"
        flags = [part for setting in settings for part in ("--set", setting)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli", "serve", "--base", str(paths.base), *flags],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        self._found: InferenceClient | None = None
        wait_until(self._is_up)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text(encoding="utf-8")
        self._found = find_server(self.paths, load_config(self.paths.base))
        return self._found is not None

    @property
    def ours(self) -> InferenceClient:
        assert self._found is not None
        return self._found

    @property
    def url(self) -> str:
        return self.ours.url

    def openai(self, token: str = "none") -> openai.OpenAI:
        """Return OpenAI's own client of this server; it tries everything once."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0)

    def end(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_SECONDS)

    def kill(self) -> None:
        """End it whatever it does."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def training(server: ServerProcess) -> Iterator[Base]:
    """Run a daemon on the server's base folder, whose worker trains for longer than any test takes."""
    base = Base(server.paths.base)
    base.drop(**LONG)
    daemon = base.start()
    try:
        wait_until(lambda: server.ours.get("/health")["is_training"])
        yield base
        base.command("skip")
        wait_until(lambda: base.jobs()[-1].outcome is not None)
    finally:
        base.end(daemon)
    wait_until(lambda: not server.ours.get("/health")["is_training"])
