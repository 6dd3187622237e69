"""A memory cgroup of either version, in which the kernel really kills for want of memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def memory_cgroup(name: str, limit_bytes: int) -> Iterator[Path]:
    """Make a cgroup limited to so much memory; a process enters by writing its pid to ``cgroup.procs``."""
    v1 = Path("/sys/fs/cgroup/memory")
    folder = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / name
    try:
        folder.mkdir()
        limit = "memory.limit_in_bytes" if v1.is_dir() else "memory.max"
        (folder / limit).write_text(str(limit_bytes))
        if not v1.is_dir():
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        message = f"no memory cgroup can be made here: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    try:
        yield folder
    finally:
        deadline = time.monotonic() + 120
        while folder.exists() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                folder.rmdir()
