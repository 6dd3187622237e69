"""Every state-changing system call of a life: found by tracing it once, each a point to strike at later."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.crash.startup import THREAD, Trap

LINE = re.compile(r"(\w+)\((.*)")
QUOTED = re.compile(r'"(/[^"]*)"')
OPENED = re.compile(r"\d+<(/[^>]*)>")
OPENS_FOR_CHANGE = re.compile(r"O_(CREAT|TRUNC|WRONLY|RDWR)")
NOT_OURS = ("/dev/null", "/proc/")
STANDARD_ERROR = "2<"
WRITES = frozenset({"write", "pwrite64", "writev"})


@dataclass(frozen=True, order=True)
class Point:
    """One call of one process, named so that it can be met again in another world."""

    process: str
    call: str
    path: str
    """Below the base folder."""
    occurrence: int
    takes_daemon_along: bool = False
    """A kill of this worker ends its daemon as well."""

    def __str__(self) -> str:
        process = f"daemon and {self.process}" if self.takes_daemon_along else self.process
        return f"{process} {self.call}#{self.occurrence} {self.path}"

    def trap(self, base: Path, action: str, log: Path) -> Trap:
        """Return what makes something happen at this point of a life in `base`."""
        return Trap(
            process=self.process,
            call=self.call,
            path=str(base / self.path),
            occurrence=self.occurrence,
            action=action,
            log=str(log),
            takes_daemon_along=self.takes_daemon_along,
        )


@dataclass(frozen=True)
class Recording:
    """What a traced life did."""

    points: tuple[Point, ...]
    strays: tuple[str, ...]
    """State-changing calls on files outside of the base folder."""


def read_recording(folder: Path, base: Path) -> Recording:
    """Make points of the trace that `Startup.record` left in `folder`."""
    points: list[Point] = []
    strays: list[str] = []
    for trace in sorted(folder.glob("trace.*")):
        name = folder / f"name{trace.suffix}"
        process = name.read_text(encoding="ascii") if name.exists() else THREAD
        for found in _read_trace(trace, process, base):
            if isinstance(found, Point):
                points.append(found)
            elif str(folder) not in found:
                strays.append(found)
    return Recording(tuple(points), tuple(strays))


def _read_trace(trace: Path, process: str, base: Path) -> Iterator[Point | str]:
    seen: Counter[tuple[str, str]] = Counter()
    for line in trace.read_text(encoding="utf-8", errors="replace").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        call, arguments = match[1], match[2].rpartition(") = ")[0]
        paths = _paths_of(call, arguments)
        seen.update((call, path) for path in set(paths))
        if call == "openat" and OPENS_FOR_CHANGE.search(arguments) is None:
            continue
        ours = [path for path in paths if Path(path).is_relative_to(base) and path != str(base)]
        if ours:
            path = ours[-1]
            yield Point(process, call, str(Path(path).relative_to(base)), seen[call, path])
        elif paths and not paths[-1].startswith(NOT_OURS) and not arguments.startswith(STANDARD_ERROR):
            yield line


def _paths_of(call: str, arguments: str) -> list[str]:
    """Return the paths by which strace can be told to look at this call alone."""
    opened = OPENED.findall(arguments)
    if call in WRITES:
        return opened  # what is written may look like a path
    named = QUOTED.findall(arguments)
    return named[:1] if call == "rename" else [*opened, *named]
