"""A process that has imported everything once and forks daemons from itself, each with its workers.

A daemon started by `exec` spends most of a short life on imports; a forked one is at work in milliseconds
and is the same process otherwise: a pid of its own, its own locks, signals, pipes and files. The same holds
for the workers, which the daemon forks instead of starting an interpreter.

``python -m tests.crash.nursery`` reads one request (JSON) a line, runs that daemon to its end, and answers
with two lines: its pid, then its return code.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import daemon
from tests.crash.startup import Startup, begin
from training import runner

ROOT = Path(__file__).parent.parent.parent
RETRY_SECONDS = 0.05
STUB = "tests.stub_worker"
REAL = "training.worker"
LEDGER = "training.ledger.following"
"""Imported by a daemon when it has something to write down."""
NOFILE = 256
"""Enough for a daemon, and quick to close after a fork."""


@dataclass(frozen=True)
class Request:
    """One daemon to be run."""

    base: str
    output: str
    """File that gets what the daemon prints."""
    overrides: list[str] = field(default_factory=list)
    worker: str = STUB
    """Module whose `main` is the worker."""
    startup: Startup = field(default_factory=Startup)
    """What is done in daemon and workers before they begin."""


class Nursery:
    """The harness's hold on a nursery process."""

    def __init__(self, *preload: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery", *preload],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    def start(self, request: Request) -> int:
        """Fork one daemon and return its pid."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(request)) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def wait(self) -> int:
        """Return the return code of the daemon started last, once it has ended: -9 for a killed one."""
        return int(self._answer())

    def close(self) -> None:
        """End the nursery, which must have no daemon running."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the nursery ended with {self._process.wait()}"
        return line


class ForkedWorker:
    """What `subprocess.Popen` is to the daemon's runner: a worker process with a pipe to its input."""

    main: Callable[[list[str]], int]
    """Set in each daemon, like the two below."""
    startup: Startup
    started = 0

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int,
        stdout: int,
        stderr: int,
        pass_fds: tuple[int, ...],
        process_group: int,
        env: Mapping[str, str],
        bufsize: int,
    ) -> None:
        assert stdin == subprocess.PIPE and process_group == 0 and bufsize == 0
        type(self).started += 1
        reading, writing = os.pipe()
        self.returncode: int | None = None
        self.stdin: IO[bytes] = open(writing, "wb", buffering=0)  # noqa: SIM115 - as long as the worker
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            for number, descriptor in enumerate((reading, stdout, stderr)):
                os.dup2(descriptor, number)
            _close_all_but(*pass_fds)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = list(command)
            _become(self._work)
        os.close(reading)

    def wait(self) -> int:
        """Reap the worker and return its return code."""
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def _work(self) -> int:
        begin(self.startup, f"worker-{type(self).started}")
        return type(self).main(sys.argv[1:])


def _become(work: Callable[[], int]) -> NoReturn:
    """Do `work` in a process forked just now and exit with what it returns."""
    logging.getLogger().handlers.clear()  # those of the parent
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - as long as the process
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    code = 1
    try:
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - what an interpreter does with an exception nobody caught
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _close_all_but(*kept: int) -> None:
    low = 3
    for descriptor in (*sorted(kept), NOFILE):
        os.closerange(low, descriptor)
        low = descriptor + 1


def _run_daemon(request: Request) -> int:
    output = os.open(request.output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    _close_all_but()
    # Whoever is left behind by this daemon is found by the folder it is in.
    os.chdir(request.base)
    ForkedWorker.startup = request.startup
    ForkedWorker.main = importlib.import_module(request.worker).main
    # For the runner alone: everybody else goes on starting programs.
    runner.subprocess = SimpleNamespace(Popen=ForkedWorker, PIPE=subprocess.PIPE)  # type: ignore[assignment, attr-defined]
    begin(request.startup, "daemon")
    daemon.run = partial(daemon.run, worker_command=("worker",), retry_seconds=RETRY_SECONDS)
    settings = [word for override in request.overrides for word in ("--set", override)]
    return daemon.main(["--base", request.base, "--until-idle", *settings])


def main(preload: Sequence[str]) -> None:
    """Serve requests until the input ends."""
    for module in (STUB, LEDGER, *preload):
        importlib.import_module(module)
    for line in sys.stdin:
        document: dict[str, Any] = json.loads(line)
        request = Request(**{**document, "startup": Startup.from_json(document["startup"])})
        pid = os.fork()
        if pid == 0:
            _become(lambda: _run_daemon(request))  # noqa: B023 - called at once
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
