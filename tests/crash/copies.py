"""One life on a real file system, and a copy of its disk at each state-changing call.

While a call is held, nothing above the disk moves; what the image holds then is what a power cut at that
instant leaves. A daemon killed there would leave the same image: the dead write nothing. So one life yields
all its cuts; those that differ neither in their disk nor in what had been said are one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from tests.crash.calls import Call, run_held
from tests.crash.disks import FileSystem, make_image, mounted, read_still_disk, write_disk
from tests.crash.life import Life
from tests.crash.nursery import Request
from tests.crash.power import WORLD, Cut
from tests.crash.startup import Startup


def begin_on(file_system: FileSystem, image: Path, mount_point: Path) -> None:
    """Make a disk with a base folder and dropped files on it, all of it written out."""
    make_image(file_system, image)
    with mounted(file_system, image, mount_point):
        Life(mount_point / WORLD).begin()


def cuts_of_a_life(file_system: FileSystem, folder: Path, bug: str | None = None) -> list[Cut]:
    """Lead a life on a disk made in the new `folder` and return the cuts at its calls."""
    folder.mkdir()
    begin_on(file_system, folder / "disk.img", folder / "mnt")
    return _cuts_on(folder, Cut(file_system, "", {}, "", bug))


def cuts_of_a_recovery(cut: Cut, folder: Path) -> list[Cut]:
    """Let a daemon go on from `cut` in the new `folder` and return the cuts at its calls."""
    folder.mkdir()
    write_disk(cut.disk, folder / "disk.img", cut.file_system.size_bytes)
    return _cuts_on(folder, replace(cut, point=f"{cut.point}; again at "))


def _cuts_on(folder: Path, origin: Cut) -> list[Cut]:
    """Lead a life on the disk in `folder`; what `origin` says is true of all its cuts."""
    image, mount_point = folder / "disk.img", folder / "mnt"
    with mounted(origin.file_system, image, mount_point):
        life = Life(mount_point / WORLD)
        disk = read_still_disk(image, origin.disk)
        cuts = [replace(origin, point=f"{origin.point}the beginning", disk=disk)]

        def look(call: Call) -> None:
            last = cuts[-1]
            disk, said = read_still_disk(image, last.disk), origin.said + life.said()
            if disk == last.disk:
                # The same disk has to bear out what was said later, too.
                cuts[-1] = replace(last, said=said)
            else:
                cuts.append(replace(origin, point=f"{origin.point}{call}", disk=disk, said=said))

        lead(life, origin.bug, look)
    image.unlink()
    return cuts


def lead(life: Life, bug: str | None, look: Callable[[Call], None]) -> None:
    """Run a daemon until it is idle, and call `look` before each of its state-changing calls."""
    request = Request(str(life.base), str(life.output), startup=Startup(bug=bug))
    command = [sys.executable, "-m", "tests.crash.nursery"]
    answer = run_held(command, life.world, look, json.dumps(asdict(request)) + "\n")
    assert answer.split()[-1] == "0", f"the daemon ended with {answer.split()[-1]}:\n{life.said()}"
