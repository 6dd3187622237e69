"""Holds a tree of processes at each of its state-changing system calls, with the kernel's own means.

A seccomp filter, inherited by every child, hands those calls to a supervisor (`seccomp_unotify(2)`): the
caller stands still until the supervisor has looked at the world and lets it go on. Other calls run at full
speed. This file is also the launcher that puts the filter on and becomes the command:
``python calls.py SOCKET_FD COMMAND…``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = {
    **{"write": 1, "pwrite64": 18, "writev": 20, "sendfile": 40, "copy_file_range": 326},
    **{"open": 2, "creat": 85, "openat": 257, "truncate": 76, "ftruncate": 77, "fallocate": 285},
    **{"fsync": 74, "fdatasync": 75, "msync": 26, "sync_file_range": 277},
    **{"rename": 82, "renameat": 264, "renameat2": 316, "link": 86, "linkat": 265},
    **{"symlink": 88, "symlinkat": 266, "unlink": 87, "unlinkat": 263},
    **{"mkdir": 83, "mkdirat": 258, "rmdir": 84, "chmod": 90, "fchmod": 91, "fchmodat": 268},
    "utimensat": 280,
}
"""Numbers of the x86-64 calls that change what lies on a disk."""
_NAMES = {number: name for name, number in CALLS.items()}
_ON_DESCRIPTORS = frozenset({"write", "pwrite64", "writev", "ftruncate", "fallocate", "fsync", "fdatasync"})
_OPENING = {"open": 1, "openat": 2}
"""Which argument holds the flags."""
POLL_MILLISECONDS = 50

_AUDIT_ARCH_X86_64 = 0xC000003E
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER, _SYS_SECCOMP = 1, 8, 317
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_NOTIF_RECV, _NOTIF_SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_PR_SET_NO_NEW_PRIVS = 38
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_RESPONSE = struct.Struct("<QqiI")


@dataclass(frozen=True)
class Call:
    """A system call that is about to happen."""

    number: int
    """Its place among all that were held so far, from 1."""
    name: str
    path: str
    """What it changes, where it names that by a descriptor; else empty."""

    def __str__(self) -> str:
        return f"call {self.number}, {self.name} {self.path}".rstrip()


def is_supported() -> bool:
    """Tell whether calls can be held on this machine."""
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    return platform.machine() == "x86_64" and actions.exists() and "user_notif" in actions.read_text()


def run_held(
    command: Sequence[str],
    under: Path,
    on_call: Callable[[Call], None],
    said_to_it: str,
    seconds: float = 120.0,
) -> str:
    """Run `command` and call `on_call` before each state-changing call that may concern what is `under`.

    Returns what it printed; CalledProcessError when it failed, TimeoutError when it takes longer than
    `seconds`.
    """
    ours, theirs = socket.socketpair()
    with ours, tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as printed:
        given.write(said_to_it)
        given.seek(0)
        with theirs:
            launcher = [sys.executable, "-S", __file__, str(theirs.fileno()), *command]
            process = subprocess.Popen(launcher, pass_fds=[theirs.fileno()], stdin=given, stdout=printed)
        try:
            _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
            try:
                _supervise(listener, under, on_call, time.monotonic() + seconds)
            finally:
                os.close(listener)
            code = process.wait(timeout=seconds)
        finally:
            process.kill()
            process.wait()
        printed.seek(0)
        if code != 0:
            raise subprocess.CalledProcessError(code, list(command), printed.read())
        return printed.read()


def _supervise(listener: int, under: Path, on_call: Callable[[Call], None], deadline: float) -> None:
    """Serve the filter until the last process that bears it has ended."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    count = 0
    while True:
        if time.monotonic() > deadline:
            raise TimeoutError("the held processes did not end")
        events = poll.poll(POLL_MILLISECONDS)
        if not events:
            continue
        if not events[0][1] & select.POLLIN:
            return
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _NOTIF_RECV, buffer)
        except FileNotFoundError:  # the caller was killed while it stood there
            continue
        identity, process, _, number, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        path = _path_of_descriptor(process, _NAMES[number], arguments)
        if _concerns(under, path, _NAMES[number], arguments):
            count += 1
            on_call(Call(count, _NAMES[number], os.path.relpath(path, under) if path else ""))
        try:
            fcntl.ioctl(listener, _NOTIF_SEND, _RESPONSE.pack(identity, 0, 0, _CONTINUE))
        except FileNotFoundError:
            continue


def _path_of_descriptor(process: int, name: str, arguments: Sequence[int]) -> str:
    if name not in _ON_DESCRIPTORS:
        return ""
    try:
        return os.readlink(f"/proc/{process}/fd/{arguments[0]}")
    except FileNotFoundError:
        return "nowhere"


def _concerns(under: Path, path: str, name: str, arguments: Sequence[int]) -> bool:
    """Tell whether a call may change something below `under`; those that name their path always may."""
    if name in _OPENING:
        return bool(arguments[_OPENING[name]] & (os.O_CREAT | os.O_TRUNC))
    return not path or Path(path).is_relative_to(under)


def _filter() -> bytes:
    """Return the BPF program: our calls go to the supervisor, all others pass."""
    load, equal, answer = 0x20, 0x15, 0x06
    numbers = sorted(CALLS.values())
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, _AUDIT_ARCH_X86_64),
        (answer, 0, 0, _RET_ALLOW),
        (load, 0, 0, 0),
    ]
    for place, number in enumerate(numbers):
        program.append((equal, len(numbers) - place, 0, number))
    program += [(answer, 0, 0, _RET_ALLOW), (answer, 0, 0, _RET_USER_NOTIF)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _install() -> int:
    """Put the filter on this process and all its children; return the supervisor's descriptor."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    program = _filter()
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    listener = libc.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER, header)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "cannot install the seccomp filter")
    return int(listener)


def _launch(supervisor: int, command: Sequence[str]) -> None:
    listener = _install()
    with socket.socket(fileno=supervisor) as connection:
        socket.send_fds(connection, [b"."], [listener])
    os.set_inheritable(listener, False)
    os.close(listener)
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    _launch(int(sys.argv[1]), sys.argv[2:])
