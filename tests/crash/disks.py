"""Disks as data: file systems on loop devices, what lies in an image, and an image made from that.

An image is looked at in blocks of 4 KiB, of which only those that are not all zeros are kept; a power cut is
such a set of blocks, written to a new image and mounted. Mounting needs root; everything here expects to run
in a mount namespace of its own (`tests.crash.power`), which takes its mounts and loop devices with it when
it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 4096
CHUNK_BYTES = 1 << 20
SIZE_BYTES = 1 << 30
"""Room for what a run is expected to need; almost all of it is holes."""
_NOTHING = bytes(BLOCK_BYTES)
_TRIES = 50

Disk = Mapping[int, bytes]
"""The blocks of a disk by their number; those that are missing hold zeros."""


@dataclass(frozen=True)
class FileSystem:
    """How one kind of file system is made and mounted."""

    name: str
    size_bytes: int
    make: tuple[str, ...]
    options: str = "noatime"

    @property
    def missing_tool(self) -> str | None:
        """Return the program that makes it when that is not installed."""
        return None if shutil.which(self.make[0]) is not None else self.make[0]


_EXT4 = ("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0")
FILE_SYSTEMS = {
    "ext4": FileSystem("ext4", SIZE_BYTES, _EXT4),
    "xfs": FileSystem("xfs", SIZE_BYTES, ("mkfs.xfs", "-q"), "noatime,nouuid"),
    "btrfs": FileSystem("btrfs", SIZE_BYTES, ("mkfs.btrfs", "-q")),
}


class MountFailed(Exception):
    """A disk that the kernel does not mount; for a disk after a power cut that is a finding."""


def make_image(file_system: FileSystem, image: Path) -> None:
    """Make a sparse image file with an empty file system in it."""
    with open(image, "xb") as file:
        file.truncate(file_system.size_bytes)
    subprocess.run([*file_system.make, str(image)], check=True, capture_output=True)
    subprocess.run(["fallocate", "--dig-holes", str(image)], check=True, capture_output=True)


@contextlib.contextmanager
def mounted(file_system: FileSystem, image: Path, folder: Path) -> Iterator[Path]:
    """Mount an image on `folder`; raise MountFailed with the kernel's reason."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"loop,{file_system.options}"
    command = ["mount", "-t", file_system.name, "-o", options, str(image), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise MountFailed(result.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def read_disk(image: Path, before: Disk | None = None) -> Disk:
    """Return what an image holds; blocks that are as they were `before` share its memory."""
    known = before or {}
    blocks = {}
    with open(image, "rb", buffering=0) as file:
        for offset, data in _written_parts(file.fileno()):
            for start in range(0, len(data), BLOCK_BYTES):
                block = data[start : start + BLOCK_BYTES]
                if block != _NOTHING:
                    number = (offset + start) // BLOCK_BYTES
                    seen = known.get(number)
                    blocks[number] = seen if seen == block else block
    return blocks


def read_still_disk(image: Path, before: Disk) -> Disk:
    """Return what an image held at one instant, although the kernel may be writing to it.

    Two readings one after the other that are equal prove it: whatever was written between a block's first
    and second reading would show, and all those spans share the instant between the two readings.
    """
    last = read_disk(image, before)
    for _ in range(_TRIES):
        again = read_disk(image, last)
        if again == last:
            return again
        last = again
    raise AssertionError(f"{image} never stood still")


def write_disk(disk: Disk, image: Path, size_bytes: int) -> None:
    """Write a disk to a new sparse image file."""
    with open(image, "xb", buffering=0) as file:
        file.truncate(size_bytes)
        for number, block in disk.items():
            os.pwrite(file.fileno(), block, number * BLOCK_BYTES)


def _written_parts(descriptor: int) -> Iterator[tuple[int, bytes]]:
    """Yield offset and bytes of what is no hole, in pieces."""
    end = os.fstat(descriptor).st_size
    offset = 0
    while offset < end:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        hole = os.lseek(descriptor, offset, os.SEEK_HOLE)
        while offset < hole:
            data = os.pread(descriptor, min(CHUNK_BYTES, hole - offset), offset)
            yield offset, data
            offset += len(data)
