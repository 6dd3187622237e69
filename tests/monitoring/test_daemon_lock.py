"""The lock holds between processes, names its holder, and never stays behind."""

from __future__ import annotations

import os
import shutil
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


def test_a_lock_file_that_stayed_behind_means_nothing_whoever_bears_its_pid_now(paths: Paths) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, os.getpid(), 1):
        paths.daemon_lock.write_text(f"{pid}\n", encoding="ascii")
        with only_daemon(paths):
            assert paths.daemon_lock.read_text(encoding="ascii") == f"{os.getpid()}\n"


RUSH = """
import os, sys, time
from pathlib import Path
from config import Paths
from errors import AlreadyRunning
from monitoring.daemon_lock import only_daemon
paths, count = Paths(Path(sys.argv[1])), int(sys.argv[2])
start, (told, tell) = os.pipe(), os.pipe()
for _ in range(count):
    if os.fork() == 0:
        os.close(start[1])
        os.read(start[0], 1)  # ends for all of them at once, when nobody can write any more
        try:
            with only_daemon(paths):
                os.write(tell, b"w")
                time.sleep(600)
        except AlreadyRunning as error:
            os.write(tell, b"l")
        os._exit(0)
os.close(start[0]), os.close(start[1]), os.close(tell)
answers = b""
while len(answers) < count:
    answers += os.read(told, count)
os.write(1, answers)
os.killpg(0, 9)
"""


def test_of_thirty_that_start_at_once_one_gets_the_lock(paths: Paths) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for _ in range(2):
        rush = subprocess.run(
            [sys.executable, "-c", RUSH, str(paths.base), "30"],
            env=environment,
            stdout=subprocess.PIPE,
            process_group=0,
            timeout=120,
            check=False,
        )
        assert sorted(rush.stdout) == sorted(b"w" + 29 * b"l")


@pytest.mark.skipif(
    shutil.which("strace") is None and os.environ.get("CI") != "true", reason="strace is not installed"
)
@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks_is_refused_with_what_to_do(error: str, paths: Paths) -> None:
    root = Path(__file__).parents[2]
    refused = subprocess.run(
        [
            *(
                "strace",
                "-f",
                "-qq",
                "-o",
                "/dev/null",
                "-e",
                "trace=flock",
                "-e",
                f"inject=flock:error={error}",
            ),
            *(sys.executable, str(root / "daemon.py"), "--base", str(paths.base)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == 2
    assert "daemon.lock: cannot be locked" in refused.stderr
    assert "put the base folder on a file system with flock" in refused.stderr
    assert "Traceback" not in refused.stderr
