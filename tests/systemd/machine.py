"""A systemd of our own, booted in private namespaces, to run units in as on a real machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

BOOT = Path(__file__).parent / "own_systemd.sh"
ROOT = BOOT.parent.parent.parent
SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "pivot_root", "systemctl", "systemd-run")
TRAINER = 4711
"""User and group that own the base folders inside."""
BOOT_SECONDS = 20.0

CODE = Path("/opt/trainbox")
VENV = Path("/opt/venv")
PYTHON = VENV / "bin" / "python"
SHARED = Path("/srv/shared")
"""Where the machine sees the checkout, the virtual environment, and the folder it shares with the test."""


def wait_until(is_so: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def what_is_missing() -> str | None:
    """Return why a systemd of our own cannot be booted here, or None when it can."""
    if os.geteuid() != 0:
        return "only root may make the namespaces of a systemd of its own"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or SYSTEMD}; run: make test-tools"
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii").split():
        return "this kernel has no overlayfs"
    if _cgroup2() is None:
        return "no cgroup2 is mounted"
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False).returncode != 0:
        return "this root may not make namespaces"
    return None


def _cgroup2() -> Path | None:
    """Return where the control groups of version 2 are mounted, alone or beside version 1."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


class Machine:
    """One booted systemd; everything it is and runs ends with `shut_down`."""

    def __init__(self, folder: Path) -> None:
        """Boot; `folder` is empty and holds the log and the folder shared with the machine."""
        self.shared = folder / "shared"
        self.shared.mkdir()
        self._log = folder / "boot.log"
        scratch = folder / "scratch"
        scratch.mkdir()
        cgroup2 = _cgroup2()
        assert cgroup2 is not None
        self._cgroup = cgroup2 / f"own-systemd-{os.getpid()}-{time.monotonic_ns()}"
        self._cgroup.mkdir()
        binds = [(ROOT, CODE, "ro"), (Path(sys.prefix), VENV, "ro"), (self.shared, SHARED, "rw")]
        namespaces = ["--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--propagation=private"]
        with self._log.open("wb") as log:
            self._outer = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig=KILL", "unshare", "--kill-child=KILL", *namespaces),
                    *(str(BOOT), str(scratch), str(self._cgroup)),
                    *(str(part) for bind in binds for part in bind),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(self._is_up, BOOT_SECONDS)
        except AssertionError:
            said = self._log.read_text(encoding="utf-8")
            self.shut_down()
            raise AssertionError(f"the systemd of our own did not come up; it said:\n{said}") from None

    def run(
        self, *command: str, user: int = 0, environment: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return what it said; with `check`, a failure fails the test."""
        identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", **(environment or {})}
        assignments = [f"{name}={value}" for name, value in variables.items()]
        finished = subprocess.run(
            [
                *("nsenter", f"--target={self._init()}", "--all", "--wdns=/"),
                *("setpriv", *identity, "env", "--ignore-environment", *assignments, *command),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert not check or finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"
        return finished

    def shut_down(self) -> None:
        """Kill everything inside at once, and remove what is left of it: its control groups."""
        (self._cgroup / "cgroup.kill").write_text("1", encoding="ascii")
        self._outer.send_signal(signal.SIGKILL)
        self._outer.wait()
        wait_until(self._has_vanished)

    def _init(self) -> int:
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children")
        return int(children.read_text(encoding="ascii").split()[0])

    def _is_up(self) -> bool:
        assert self._outer.poll() is None
        with contextlib.suppress(IndexError, FileNotFoundError):
            state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            return state in ("running", "degraded")
        return False

    def _has_vanished(self) -> bool:
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        return not self._cgroup.exists()
