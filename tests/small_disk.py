"""A file system that is really small: a tmpfs, mounted for one test and filled at will."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take all space but `leave_bytes`."""
        with self._ballast.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, self._ballast.stat().st_size + self.free_bytes - leave_bytes)

    def take_inodes(self, leave: int = 0) -> None:
        """Make empty files until only `leave` more are possible."""
        (self.folder / "many").mkdir(exist_ok=True)
        for number in range(os.statvfs(self.folder).f_favail - leave):
            (self.folder / "many" / str(number)).touch()

    def clear(self) -> None:
        """Give everything back."""
        self._ballast.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            for path in (self.folder / "many").iterdir():
                path.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[SmallDisk]:
    """Mount a tmpfs with `options` (``size=300m``); skip the test where that is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        message = "a small file system can only be mounted by root"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
