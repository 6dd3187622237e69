"""Power cuts in full: every call of a life, the disks legal below the file system, cuts of the recovery.

Mounts, loop devices and processes live in namespaces of their own, and the disks in a file system in memory
there: when the first process of the namespaces ends, however it ends, all of them are gone.
``python -m tests.crash.cuts PLAN FOLDER`` is that process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tests.crash.calls import is_supported
from tests.crash.copies import cuts_of_a_life, cuts_of_a_recovery
from tests.crash.disks import FILE_SYSTEMS
from tests.crash.invariants import Violation
from tests.crash.nursery import ROOT, Nursery
from tests.crash.planted import BUGS
from tests.crash.power import Cut, judge_cut, sample
from tests.crash.replay import legal_cuts_of_a_life
from tests.crash.strike import Range, Say, open_range
from tests.crash.tally import Tally

SHOWN_BY_CUTS = {
    "no_file_fsync": ("ext4", r"fsync base/inbox\n"),
    "no_folder_fsync": ("ext4", r"Moved current .*\n\Z"),
    "no_same_inode_check": ("btrfs", r"fsync base/inbox\n"),
}
"""Planted bugs that no kill can show: the file system that shows them, and which cuts are tried first, by
their point and what had been said."""


@dataclass(frozen=True)
class Plan:
    """What is cut, and how much of it."""

    seed: int = 0
    file_systems: Sequence[str] = tuple(FILE_SYSTEMS)
    copies: int | None = None
    """Cuts of a life's calls on each file system; None is every one."""
    replayed: int | None = 100
    """Legal disks on each file system."""
    subsets: int = 2
    """Random parts of the unflushed writes, tried at each instant."""
    recoveries: int = 3
    """Cuts on each file system whose recovery is cut as well."""
    cuts_of_recovery: int = 12
    """Cuts of each such recovery."""
    bugs: Sequence[str] = tuple(SHOWN_BY_CUTS)


CutMaker = Callable[[], list[Cut]]


def run(say: Say, plan: Plan | None = None) -> Tally:
    """Carry out a plan, by default the full one, in namespaces of its own."""
    reason = reason_it_cannot_run()
    if reason is not None:
        raise RuntimeError(f"power cuts need {reason}")
    tally = None
    with tempfile.TemporaryDirectory(prefix="cuts-") as folder:
        command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
        command += ["--mount-proc", sys.executable, "-m", "tests.crash.cuts"]
        command += [json.dumps(asdict(plan or Plan())), folder]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        with process, _killed_on_error(process):
            assert process.stdout is not None
            for line in process.stdout:
                message = json.loads(line)
                if "tally" in message:
                    tally = Tally(**message["tally"])
                else:
                    say(message["say"])
    if process.returncode != 0 or tally is None:
        raise RuntimeError(f"the power cuts ended with {process.returncode}")
    return tally


@contextlib.contextmanager
def _killed_on_error(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Let nothing go on when nobody listens any more, for instance after a test's time ran out."""
    try:
        yield
    except BaseException:
        process.kill()
        raise


def reason_it_cannot_run() -> str | None:
    """Return what this machine lacks, or None."""
    tools = ["unshare", "mount", "fallocate", *(system.make[0] for system in FILE_SYSTEMS.values())]
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"the programs {', '.join(missing)}: make test-tools"
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "root that may mount"
    if not is_supported():
        return "a Linux on x86-64 with seccomp notifications"
    devices = [device for device in ("/dev/loop-control", "/dev/fuse") if not os.path.exists(device)]
    if devices:
        return " and ".join(devices)
    known = Path("/proc/filesystems").read_text(encoding="ascii").split()
    for name in (*FILE_SYSTEMS, "fuse"):
        if name not in known and not _is_loadable(name):
            return f"{name} in the kernel"
    return None


def _is_loadable(module: str) -> bool:
    """Load a module of the kernel and tell whether that went well."""
    modprobe = shutil.which("modprobe")
    return modprobe is not None and subprocess.run([modprobe, module], capture_output=True).returncode == 0


class PowerCuts:
    """One plan at work in the namespaces."""

    def __init__(self, plan: Plan, folder: Path, nurseries: Range, say: Say) -> None:
        self._plan = plan
        self._folder = folder
        self._nurseries = nurseries
        self._say = say
        self.tally = Tally()

    def carry_out(self) -> Tally:
        """Judge the cuts of every file system, then look for the planted bugs."""
        with ThreadPoolExecutor(self._nurseries.size) as pool:
            for (title, _), cuts in zip(self._lives(), pool.map(_make, self._lives()), strict=True):
                self._judge(title, cuts)
            bugs = list(self._plan.bugs)
            for bug, cuts in zip(bugs, pool.map(self._cuts_with, bugs), strict=True):
                self._catch(bug, cuts)
        return self.tally

    def _lives(self) -> Iterator[tuple[str, CutMaker]]:
        """Yield what is to be judged: a title, and what makes the cuts."""
        for name in self._plan.file_systems:
            if self._plan.copies != 0:
                yield f"{name}: copies at calls", partial(self._copies, name)
            if self._plan.replayed != 0:
                yield f"{name}: legal disks", partial(self._replayed, name)
            for number in range(1, self._plan.recoveries + 1):
                yield f"{name}: cuts of recovery {number}", partial(self._recovery, name, number)

    def _copies(self, name: str) -> list[Cut]:
        cuts = cuts_of_a_life(FILE_SYSTEMS[name], self._folder / f"{name}-copies")
        return sample(cuts, self._plan.copies, self._draw(name))

    def _replayed(self, name: str) -> list[Cut]:
        folder, draw = self._folder / f"{name}-replay", self._draw(name)
        cuts = legal_cuts_of_a_life(FILE_SYSTEMS[name], folder, draw, self._plan.subsets)
        return sample(cuts, self._plan.replayed, draw)

    def _recovery(self, name: str, number: int) -> list[Cut]:
        folder, draw = self._folder / f"{name}-again-{number}", self._draw(f"{name} {number}")
        first = draw.choice(cuts_of_a_life(FILE_SYSTEMS[name], folder))
        cuts = cuts_of_a_recovery(first, folder / "recovery")
        return sample(cuts, self._plan.cuts_of_recovery, draw)

    def _cuts_with(self, bug: str) -> list[Cut]:
        """Return the cuts of a life with a bug, the likely ones first."""
        name, likely = SHOWN_BY_CUTS[bug]
        cuts = cuts_of_a_life(FILE_SYSTEMS[name], self._folder / bug, bug)
        self._draw(bug).shuffle(cuts)
        return sorted(cuts, key=lambda cut: re.search(likely, f"{cut.point}\n{cut.said}") is None)

    def _draw(self, what: str) -> random.Random:
        return random.Random(f"{self._plan.seed} {what}")

    def _judge(self, title: str, cuts: Sequence[Cut]) -> None:
        for cut, found in self._judged(cuts):
            self.tally.cuts += 1
            for violation in found:
                self.tally.fail(str(cut), violation.harm, violation.what)
        self._say(f"{title}: {len(cuts)} judged, {len(self.tally.failures)} violations so far")

    def _catch(self, bug: str, cuts: Sequence[Cut]) -> None:
        """Judge cuts of a life with a bug until one is violated."""
        self.tally.planted_bugs += 1
        for start in range(0, len(cuts), self._nurseries.size):
            for cut, found in self._judged(cuts[start : start + self._nurseries.size]):
                if found:
                    self.tally.planted_bugs_caught += 1
                    self._say(f"{bug}: caught at {cut}: {found[0]}")
                    return
        self._say(f"{bug}: NOT CAUGHT by {len(cuts)} cuts")

    def _judged(self, cuts: Sequence[Cut]) -> Iterator[tuple[Cut, list[Violation]]]:
        def work(nursery: Nursery, cut: Cut) -> tuple[Cut, list[Violation]]:
            return cut, judge_cut(cut, self._folder, nursery)

        return self._nurseries.map(work, cuts)


def _make(life: tuple[str, CutMaker]) -> list[Cut]:
    return life[1]()


def main(plan: Plan, folder: Path) -> None:
    """Carry out `plan` in these namespaces; write what there is to say, then the tally, as JSON lines."""

    def write(message: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    subprocess.run(["mount", "-t", "tmpfs", "cuts", str(folder)], check=True)
    with open_range() as nurseries:
        tally = PowerCuts(plan, folder, nurseries, lambda line: write({"say": line})).carry_out()
    write({"tally": asdict(tally)})


if __name__ == "__main__":
    assert set(SHOWN_BY_CUTS) <= set(BUGS)
    main(Plan(**json.loads(sys.argv[1])), Path(sys.argv[2]))
