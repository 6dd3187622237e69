"""The guard: a small process that ends whatever a worker leaves behind when it dies.

The kernel kills a worker with its daemon, but not the worker's own children. The guard is one of them, waits
for the worker's end, however it comes, and kills the process group that the worker led.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys


def start_guard() -> None:
    """Start the guard of this process's group; a group that this process does not lead is left alone."""
    if os.getpgrp() != os.getpid():
        return
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main(worker_pid: int) -> None:
    """Wait for the end of the worker, then kill its group, this process included."""
    if os.getpgrp() != worker_pid:
        return
    if os.getppid() == worker_pid:
        end = select.poll()
        end.register(os.pidfd_open(worker_pid), select.POLLIN)
        end.poll()
    os.killpg(worker_pid, signal.SIGKILL)


if __name__ == "__main__":
    main(int(sys.argv[1]))
