"""A disk that remembers the order in which it was written, and the disks that a power cut may make of it.

The disk is one file in a FUSE file system, put under a loop device; each write and each flush of the kernel
is a record in a log. What was written before the last flush is on the disk after a power cut; of what came
later any part may be, block by block: the log of one run yields any number of disks that are legal at that
instant. Run as ``python -m tests.crash.block_log IMAGE LOG FOLDER`` it is the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mfusepy

from tests.crash.disks import BLOCK_BYTES, Disk

DISK = "disk"
"""The one file."""
_HEADER = struct.Struct("<cQI")
"""Kind, offset on the disk, bytes that follow."""
_START_SECONDS = 120.0


class BlockLog(mfusepy.Operations):  # type: ignore[misc]
    """The file system: one file of fixed size; its writes and flushes are logged, then answered."""

    use_ns = True

    def __init__(self, image: Path, log: Path) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._size_bytes = image.stat().st_size
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
        if path == f"/{DISK}":
            return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._size_bytes}
        raise mfusepy.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", DISK]

    def open(self, path: str, flags: int) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(self._image, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        append(self._log, b"W", offset, data)
        return os.pwrite(self._image, data, offset)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        append(self._log, b"F")
        return 0

    def flush(self, path: str, fh: int) -> int:
        return 0


def append(log: int, kind: bytes, offset: int = 0, data: bytes = b"") -> None:
    """Append a record: a write, a flush, or the mark of an observer (``M``)."""
    os.write(log, _HEADER.pack(kind, offset, len(data)) + data)


@contextlib.contextmanager
def logged(image: Path, log: Path, folder: Path) -> Iterator[Path]:
    """Offer `image` as a file whose writes go to `log`; yield that file."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.crash.block_log", str(image), str(log), str(folder)]
    server = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not (folder / DISK).exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the logged disk did not start; is /dev/fuse there?")
            time.sleep(0.01)
        yield folder / DISK
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
        server.wait(timeout=_START_SECONDS)


@dataclass(frozen=True)
class LegalDisk:
    """A disk that a power cut at one instant may leave."""

    name: str
    disk: Disk
    mark: bytes
    """The last thing the observer had marked by then."""


@dataclass
class _Instant:
    """The disk while its log is read."""

    certain: dict[int, bytes]
    """What every disk holds at this instant."""
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    """Blocks written since the last flush, in order."""
    latest: dict[int, bytes] = field(default_factory=dict)
    """The last of the pending blocks by number."""
    mark: bytes = b""

    def disk(self, kept: Sequence[bool]) -> Disk:
        written = [block for block, is_kept in zip(self.pending, kept, strict=True) if is_kept]
        return {**self.certain, **dict(written)}


def legal_disks(start: Disk, log: Path, draw: random.Random, subsets: int) -> Iterator[LegalDisk]:
    """Yield the different disks that the log allows, `start` being the disk before it.

    At each flush and each mark: the disk with nothing that was not flushed, with all of it, and with
    `subsets` random parts of it.
    """
    instant = _Instant(dict(start))
    seen: set[int] = set()
    for number, (kind, offset, data) in enumerate(_records(log)):
        if kind == b"W":
            instant.pending.extend(_blocks(instant, offset, data))
            continue
        if kind == b"M":
            instant.mark = data
        for part, kept in _choices(len(instant.pending), draw, subsets):
            disk = instant.disk(kept)
            identity = hash((frozenset(disk.items()), instant.mark))
            if identity not in seen:
                seen.add(identity)
                yield LegalDisk(f"record {number} ({part})", disk, instant.mark)
        if kind == b"F":
            instant.certain.update(instant.pending)
            instant.pending.clear()
            instant.latest.clear()


def _choices(count: int, draw: random.Random, subsets: int) -> Iterator[tuple[str, list[bool]]]:
    yield "nothing unflushed", [False] * count
    if count:
        yield "all", [True] * count
    for number in range(subsets if count > 1 else 0):
        yield f"part {number}", [draw.random() < 0.5 for _ in range(count)]


def _blocks(instant: _Instant, offset: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut a write into blocks; where it covers a block in part, the rest is what was there."""
    end = offset + len(data)
    for number in range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
        start = number * BLOCK_BYTES
        old = instant.latest.get(number) or instant.certain.get(number) or bytes(BLOCK_BYTES)
        first, last = max(offset, start), min(end, start + BLOCK_BYTES)
        block = old[: first - start] + data[first - offset : last - offset] + old[last - start :]
        instant.latest[number] = block
        yield number, block


def _records(log: Path) -> Iterator[tuple[bytes, int, bytes]]:
    with open(log, "rb") as file:
        while header := file.read(_HEADER.size):
            kind, offset, size = _HEADER.unpack(header)
            yield kind, offset, file.read(size)


if __name__ == "__main__":
    served_image, served_log, mount_point = sys.argv[1:]
    operations = BlockLog(Path(served_image), Path(served_log))
    mfusepy.FUSE(operations, mount_point, foreground=True, nothreads=True)
