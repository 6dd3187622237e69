"""One life on a disk that logs what the kernel writes, and the disks that are legal at each of its instants.

A copy of the image knows only the order in which the kernel happened to write. Below the file system more
is possible: what was not flushed may be there in part, in any choice of blocks.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.crash import block_log
from tests.crash.calls import Call
from tests.crash.copies import begin_on, lead
from tests.crash.disks import FileSystem, mounted, read_disk
from tests.crash.life import Life
from tests.crash.power import WORLD, Cut


def legal_cuts_of_a_life(
    file_system: FileSystem, folder: Path, draw: random.Random, subsets: int, bug: str | None = None
) -> list[Cut]:
    """Lead a life on a logged disk made in the new `folder`; return the cuts that its log allows.

    `subsets` is the number of random parts of the unflushed writes that are tried at each instant.
    """
    folder.mkdir()
    image, log = folder / "disk.img", folder / "disk.log"
    begin_on(file_system, image, folder / "mnt")
    start = read_disk(image)
    with block_log.logged(image, log, folder / "fuse") as device:
        _lead_and_mark(file_system, device, folder / "mnt", log, bug)
    return [
        Cut(file_system, legal.name, legal.disk, legal.mark.decode(), bug)
        for legal in block_log.legal_disks(start, log, draw, subsets)
    ]


def _lead_and_mark(
    file_system: FileSystem, device: Path, mount_point: Path, log: Path, bug: str | None
) -> None:
    """Lead a life, and put into the log what the daemon has said whenever it has said more."""
    marks = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        with mounted(file_system, device, mount_point):
            life = Life(mount_point / WORLD)
            marked = ""

            def look(call: Call) -> None:
                nonlocal marked
                said = life.said()
                if said != marked:
                    block_log.append(marks, b"M", data=said.encode())
                    marked = said

            lead(life, bug, look)
    finally:
        os.close(marks)
