"""A systemd of our own, booted in private namespaces, to run units in as on a real machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import durable
from config import Paths
from tests.stub_worker import let_go_file
from tests.waiting import PATIENCE_SECONDS, wait_until
from training.jobs import Job, JobStore

BOOT = Path(__file__).parent / "own_systemd.sh"
ROOT = BOOT.parent.parent.parent
SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "setpriv", "pivot_root", "systemctl", "systemd-run")
TRAINER = 4711
"""User and group that own the base folders inside."""
BOOT_SECONDS = 120.0

CODE = Path("/opt/trainbox")
VENV = Path("/opt/venv")
PYTHON = VENV / "bin" / "python"
SHARED = Path("/home/trainer/shared")
"""Where the machine sees the checkout, the virtual environment, and the folder it shares with the test."""
STUB_DAEMON = CODE / "tests" / "systemd" / "stub_daemon.py"
USER_ENVIRONMENT = {"HOME": "/home/trainer", "XDG_RUNTIME_DIR": f"/run/user/{TRAINER}"}
BASE_NAME = """base 100% of $HOME's "files" \\o/"""
"""All that a unit file could take for something else."""


def what_is_missing() -> str | None:
    """Return why a systemd of our own cannot be booted here, or None when it can."""
    if os.geteuid() != 0:
        return "only root may make the namespaces of a systemd of its own"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or SYSTEMD}; run: make test-tools"
    if "overlay" not in Path("/proc/filesystems").read_text(encoding="ascii").split():
        return "this kernel has no overlayfs"
    cgroup2 = _cgroup2()
    if cgroup2 is None or not os.access(cgroup2, os.W_OK):
        return "no cgroup2 is mounted that could be written to"
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
        for folder in Path(sys.base_prefix).parents:  # root's own Python may be the one under test
            self.run("chmod", "o+x", str(folder))

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
            timeout=PATIENCE_SECONDS,
        )
        assert not check or finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"
        return finished

    def start_user_manager(self) -> None:
        """Start the systemd of the account `trainer`, as its login would."""
        runtime = USER_ENVIRONMENT["XDG_RUNTIME_DIR"]
        self.run("install", "-d", "-m", "0700", "-o", str(TRAINER), "-g", str(TRAINER), runtime)
        if self.run("systemctl", "is-active", "user-manager", check=False).returncode == 0:
            return
        properties = ("User=trainer", "Delegate=yes", "Type=notify", "NotifyAccess=all")
        self.run(
            *("systemd-run", "--quiet", "--unit=user-manager"),
            *(f"--property={assignment}" for assignment in properties),
            *(f"--setenv={name}={value}" for name, value in USER_ENVIRONMENT.items()),
            *(str(SYSTEMD), "--user", "--unit=basic.target"),
        )

    def processes(self) -> list[int]:
        """Return what runs inside, by the pids of the host."""
        groups = [folder for folder, _, _ in os.walk(self._cgroup)]
        files = [Path(folder, "cgroup.procs") for folder in groups]
        return [int(pid) for file in files for pid in file.read_text(encoding="ascii").split()]

    def shut_down(self) -> None:
        """Kill everything inside at once, and remove what is left of it: its control groups."""
        self._outer.kill()  # PID 1 dies with it, and all of its namespaces with PID 1
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


class Unit:
    """One base folder and its unit, made by `trainbox install-service`."""

    _made = 0

    def __init__(self, machine: Machine, kind: Literal["system", "user"], *options: str) -> None:
        """`options` are further ones of the command."""
        Unit._made += 1
        self.name = f"trainbox-{Unit._made}"
        self.kind = kind
        self._machine = machine
        self.paths = Paths(machine.shared / self.name / BASE_NAME)
        self.paths.create()
        self.give(self.paths.base.parent)
        self.inside = SHARED / self.name / BASE_NAME
        """The base folder as the machine sees it."""
        self.trainbox(
            "install-service", "--base", str(self.inside), f"--{kind}", "--name", self.name, *options
        )
        units = "/etc/systemd/system" if kind == "system" else "/home/trainer/.config/systemd/user"
        self.file = f"{units}/{self.name}.service"
        self.text = self.run("cat", self.file).stdout

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as who has the unit: root, or the user."""
        if self.kind == "system":
            return self._machine.run(*command, check=check)
        return self._machine.run(*command, user=TRAINER, environment=USER_ENVIRONMENT, check=check)

    def trainbox(self, *arguments: str) -> str:
        environment = USER_ENVIRONMENT if self.kind == "user" else {}
        user = TRAINER if self.kind == "user" else 0
        command = (str(PYTHON), "-m", "cli", *arguments)
        variables = {**environment, "PYTHONPATH": str(CODE)}
        return self._machine.run(*command, user=user, environment=variables).stdout

    def systemctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", f"--{self.kind}", *arguments, check=check)

    def change(self, *lines: str, has_stub: bool = True) -> None:
        """Add lines to the unit's [Service] as a person would, first the stub daemon for the daemon."""
        if has_stub:
            (start,) = [line for line in self.text.splitlines() if line.startswith("ExecStart=")]
            stub = start.replace(str(CODE / "daemon.py"), str(STUB_DAEMON))
            lines = ("ExecStart=", stub, *lines)
        text = "\n".join(["[Service]", *lines, ""])
        self.run("mkdir", "-p", f"{self.file}.d")
        self.run("sh", "-c", 'printf %s "$1" > "$2"', "sh", text, f"{self.file}.d/test.conf")
        self.systemctl("daemon-reload")

    def start(self, *lines: str, has_stub: bool = True) -> None:
        """Change the unit and start it; returns when it is ready."""
        self.change(*lines, has_stub=has_stub)
        self.systemctl("start", self.name)

    def stop(self) -> None:
        self.systemctl("stop", self.name)

    def property(self, name: str) -> str:
        return self.systemctl("show", "--value", f"--property={name}", self.name).stdout.strip()

    def signal_main(self, name: str) -> None:
        """Send a signal to the main process alone."""
        pid = self.property("MainPID")
        assert pid != "0"
        self._machine.run("sh", "-c", f"kill -{name} {pid}")

    def processes(self) -> list[str]:
        """Return the pids of the service."""
        group = self.property("ControlGroup")
        if not group:
            return []
        return self._machine.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False).stdout.split()

    def worker(self) -> int | None:
        """Return the pid of the worker that runs now, the only other process of the service."""
        others = [int(pid) for pid in self.processes() if pid != self.property("MainPID")]
        return others[0] if others else None

    def has_process(self, pid: int) -> bool:
        return self._machine.run("test", "-e", f"/proc/{pid}", check=False).returncode == 0

    def journal(self) -> str:
        unit = f"--unit={self.name}" if self.kind == "system" else f"--user-unit={self.name}"
        return self._machine.run("journalctl", "--quiet", "--output=cat", unit).stdout

    def drop(self, **script: object) -> None:
        """Drop a file for the stub worker."""
        (self.paths.inbox / "a.jsonl").write_text(json.dumps({"stub": script}) + "\n", encoding="utf-8")

    def give(self, path: Path) -> None:
        """Make the account that trains the owner of a path and of all below it."""
        for owned in (path, *path.rglob("*")):
            os.chown(owned, TRAINER, TRAINER)

    def command(self, command: str) -> None:
        self.paths.control(command).touch()

    def status(self, field: str) -> object:
        try:
            return durable.read_json(self.paths.status_file)[field]
        except FileNotFoundError:
            return None

    def is_at_step(self, step: int) -> bool:
        at = self.status("batch_step")
        return self.status("state") == "training" and isinstance(at, int) and at >= step

    def is_done(self) -> bool:
        return (self.paths.done / "a.jsonl").exists()

    def is_failed(self) -> bool:
        return (self.paths.failed / "a.jsonl").exists()

    def job(self) -> Job:
        (job,) = JobStore(self.paths).all()
        return job

    def let_go(self, step: int) -> None:
        """Let the job go on that its script holds before `step`."""
        let_go_file(self.paths.run(self.job().job_id), step).touch()

    def steps(self) -> list[int]:
        """Return every step that was trained, in order, as the worker told it."""
        lines = self.paths.run(self.job().job_id).events.read_bytes().splitlines()
        return [event["step"] for event in map(json.loads, lines) if event["event"] == "step"]

    def remove(self) -> None:
        """End whatever runs, and forget the unit."""
        self.systemctl("kill", "--signal=KILL", self.name, check=False)
        self.systemctl("stop", self.name, check=False)
        self.systemctl("reset-failed", self.name, check=False)
        self.run("rm", "-r", "-f", self.file, f"{self.file}.d")
        self.systemctl("daemon-reload")
