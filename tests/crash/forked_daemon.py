"""The real daemon in a process of its own, forked instead of started, so that a life costs milliseconds.

It is the daemon in all but its birth: its pid, locks, signals, pipes and workers are its own, and it may be
killed at any instant. The process that forks must have one thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import psutil

import daemon
from config import Paths
from monitoring.training_status import Reading, read_status
from tests import stub_worker
from tests.crash.nursery import RETRY_SECONDS, ForkedWorker
from tests.crash.startup import Startup
from training import runner

ROOT = Path(__file__).parent.parent.parent
PATIENCE_SECONDS = 120.0
"""How long a harness waits for what must come, on a machine that does much else besides."""
_PR_SET_PDEATHSIG = 1


class Overdue(Exception):
    """What must come did not come."""


def wait_until(is_so: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for something that must come; raise Overdue when it does not."""
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise Overdue(f"waited {seconds:g} s in vain until {what}")
        time.sleep(0.005)


class ForkedDaemon:
    """At most one living daemon on a base folder, and what it printed."""

    def __init__(
        self,
        base: Path,
        overrides: Sequence[str],
        *,
        worker_main: Callable[[list[str]], int] = stub_worker.main,
    ) -> None:
        """The workers, forked too, run `worker_main`."""
        self.paths = Paths(base)
        self._overrides = list(overrides)
        self._worker_main = worker_main
        self._log = base.parent / f"{base.name}.log"
        self.pid: int | None = None

    def start(self, *, until_idle: bool = False) -> None:
        """Fork a daemon and return at once."""
        assert self.pid is None
        harness = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_daemon(harness, until_idle=until_idle)

    def wait_ready(self) -> None:
        """Wait until it takes commands."""

        def is_ready() -> bool:
            reading = self.reading()
            return (
                reading is not None and reading.status.pid == self.pid and reading.status.state != "starting"
            )

        wait_until(lambda: is_ready() or not self.is_alive(), "the daemon was ready")

    def reading(self) -> Reading | None:
        """Return its status as anybody reads it."""
        return read_status(self.paths)

    def state(self) -> str | None:
        """Return what this very daemon says it is at."""
        reading = self.reading()
        return reading.status.state if reading is not None and reading.status.pid == self.pid else None

    def last_state(self) -> str | None:
        """Return what the last daemon here said it was at."""
        reading = self.reading()
        return None if reading is None else reading.status.state

    def is_alive(self) -> bool:
        """Tell whether it runs; it is not reaped."""
        return (
            self.pid is not None
            and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        )

    def workers(self) -> list[psutil.Process]:
        """Return its living worker processes."""
        if self.pid is None:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in psutil.Process(self.pid).children() if _is_living(child)]
        return []

    def kill(self) -> None:
        """Kill it as a power cut would; wait until its workers, which must die with it, are gone."""
        assert self.pid is not None
        workers = self.workers()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._reap()
        wait_until(lambda: not any(map(_is_living, workers)), "the workers had died with their daemon")

    def terminate(self) -> int:
        """Ask it to end by SIGTERM and return its exit code."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end and return its exit code."""
        try:
            wait_until(lambda: not self.is_alive(), "the daemon had ended")
        except Overdue:
            self.kill()
            raise
        return self._reap()

    def log(self) -> str:
        """Return all that the daemons of this folder printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _become_daemon(self, harness: int, *, until_idle: bool) -> NoReturn:
        """Turn this process, forked just now, into a daemon, and end with it."""
        code = 70
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() == harness:
                self._leave_harness()
                code = daemon.run(
                    self.paths.base,
                    overrides=self._overrides,
                    until_idle=until_idle,
                    worker_command=("forked",),
                    retry_seconds=RETRY_SECONDS,
                )
        except BaseException:  # noqa: BLE001 - what an interpreter does with an exception nobody caught
            traceback.print_exc()
        finally:
            os._exit(code)

    def _leave_harness(self) -> None:
        """Give up what belongs to the process this one was forked from."""
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), number)
        os.closerange(3, 256)
        sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115 - to its end
        ForkedWorker.main, ForkedWorker.startup = self._worker_main, Startup()
        fork = SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE)
        runner.subprocess = fork  # type: ignore[assignment, attr-defined]

    def _reap(self) -> int:
        assert self.pid is not None
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)


def _is_living(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
