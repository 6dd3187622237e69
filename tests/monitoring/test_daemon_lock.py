"""The lock holds between processes, names its holder, and never stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from config import Paths
from errors import AlreadyRunning
from monitoring.daemon_lock import only_daemon

HOLD = """
import sys, time
from pathlib import Path
from config import Paths
from monitoring.daemon_lock import only_daemon
with only_daemon(Paths(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "base")
    made.create()
    return made


def hold(paths: Paths) -> subprocess.Popen[str]:
    """Start a process that holds the lock."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(paths.base)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_is_refused_with_the_pid_of_its_holder_until_that_is_killed(paths: Paths) -> None:
    holder = hold(paths)
    for _ in range(2):
        with pytest.raises(AlreadyRunning, match=f"pid {holder.pid} runs here"), only_daemon(paths):
            pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with only_daemon(paths):
        assert paths.daemon_lock.read_text(encoding="ascii") == f"{os.getpid()}\n"
    assert paths.daemon_lock.read_text(encoding="ascii") == ""
    with only_daemon(paths):
        pass


def test_an_error_inside_lets_the_lock_go(paths: Paths) -> None:
    with pytest.raises(ValueError, match="inside"), only_daemon(paths):
        raise ValueError("inside")
    with only_daemon(paths):
        pass
