"""Known bugs, put into the product's code at run time, that the crash tests must catch.

Each replaces functions of the product in the daemon and worker it is planted in; the product has no switch
for any of them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import durable

Sets = list[tuple[object, str, object]]
"""What is replaced: an object, the name of its attribute, the replacement."""


def plant(name: str) -> None:
    """Put one bug into this process."""
    for owner, attribute, replacement in BUGS[name]():
        assert hasattr(owner, attribute), f"{owner} has no {attribute}: the bug has nothing to replace"
        setattr(owner, attribute, replacement)


def no_file_fsync() -> Sets:
    """Files get their names before their bytes are on the disk."""
    fsync = os.fsync

    def only_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            fsync(descriptor)

    return [(os, "fsync", only_folders)]


def no_folder_fsync() -> Sets:
    """Names are not on the disk when it is said that they are."""
    return [(durable, "fsync_folder", lambda folder: None)]


BUGS: dict[str, Callable[[], Sets]] = {
    "no_file_fsync": no_file_fsync,
    "no_folder_fsync": no_folder_fsync,
}
