"""What happens in a daemon or worker of the crash tests before it begins: a bug planted, a tracer attached.

The tracer is strace, attached by the process itself to itself. Facts it is built on (strace 6.1): an injected
SIGKILL acts before the call; ``when=k`` counts by name of the call and by thread, so every trap is bound to
one path and, without ``-f``, to the main thread; ``--seccomp-bpf`` silently switches injection off.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CALLS = (
    *("openat", "creat", "write", "pwrite64", "writev", "rename", "renameat", "renameat2", "link", "linkat"),
    *("symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "fsync", "fdatasync"),
    *("ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile", "flock", "fchmod", "chmod"),
    *("utimensat", "msync", "sync_file_range"),
)
"""System calls that change files, or what is known to be on the disk."""
THREAD = "daemon-thread"
"""The daemon's threads, which write down what workers print, and keep the ledger."""
ATTACH_SECONDS = 120.0


@dataclass(frozen=True)
class Trap:
    """The call at which something happens to a process."""

    process: str
    """``daemon``, ``daemon-thread`` or ``worker-N``, the Nth that this daemon starts."""
    call: str
    path: str
    """Absolute; one of the paths that the call names, or has open."""
    occurrence: int
    """The how manieth of these calls on this path, from 1."""
    action: str
    """``signal=KILL`` or ``error=ENOSPC``: strace's words."""
    log: str
    """File for what strace saw."""
    takes_daemon_along: bool = False
    """Kill the daemon as soon as the worker is dead."""


@dataclass(frozen=True)
class Startup:
    """Everything that is done before a daemon and its workers begin."""

    traps: list[Trap] = field(default_factory=list)
    record: str | None = None
    """Folder for a trace of every state-changing call, one file for each thread."""
    bug: str | None = None
    """Name of a bug in `tests.crash.planted`."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Startup:
        return cls(**{**document, "traps": [Trap(**trap) for trap in document["traps"]]})


def begin(startup: Startup, process: str) -> None:
    """Prepare this process, which is called `process`."""
    if startup.bug is not None and process == "daemon":
        from tests.crash.planted import plant

        plant(startup.bug)
    if startup.record is not None:
        folder = Path(startup.record)
        (folder / f"name.{os.getpid()}").write_text(process, encoding="ascii")
        if process == "daemon":
            _attach(["-f", "-ff", "-y", "-s", "200", "-o", str(folder / "trace"), _trace(*CALLS)])
    for trap in startup.traps:
        if trap.process == process or (trap.process == THREAD and process == "daemon"):
            _set(trap)


def _set(trap: Trap) -> None:
    inject = ["-e", f"inject={trap.call}:{trap.action}:when={trap.occurrence}"]
    threads = ["-f"] if trap.process == THREAD else []
    victim = os.getppid() if trap.takes_daemon_along else None
    _attach([*threads, "-y", "-o", trap.log, _trace(trap.call), "-P", trap.path, *inject], victim)


def _trace(*calls: str) -> str:
    return f"--trace={','.join(calls)}"


def _attach(options: list[str], victim: int | None = None) -> None:
    """Have strace trace this process; when it ends, kill `victim`."""
    command = ["strace", "-q", *options, "-p", str(os.getpid())]
    if victim is not None:
        command = ["sh", "-c", f'"$@"; kill -KILL {victim}', "sh", *command]
    tracer = subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + ATTACH_SECONDS
    while not _is_traced():
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("strace could not be attached")
        time.sleep(0.002)


def _is_traced() -> bool:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in lines)
