"""One strike: a life that is hit at a point, goes on, and is judged."""

from __future__ import annotations

import os
import queue
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.crash.invariants import Violation, fingerprint, reader_violations, violations, world_violations
from tests.crash.life import Life, new_world
from tests.crash.nursery import Nursery
from tests.crash.points import Point, Recording, read_recording
from tests.crash.startup import Startup
from tests.crash.tally import Tally

DEATH_SECONDS = 120.0
TRIES = 3
"""A call that depends on the clock may not come in one life and come in the next."""
SHOWN_EVERY = 50

Say = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")


class Missed(Exception):
    """The life ended without the call that was to be struck."""


@dataclass(frozen=True)
class Strike:
    """Something to be done to a life of its own: its name, and what finds the violations."""

    name: str
    carry_out: Callable[[Nursery], list[Violation]]


class Range:
    """A few nurseries, so that some lives go on side by side."""

    def __init__(self, size: int, *preload: str) -> None:
        self.size = size
        self._nurseries = [Nursery(*preload) for _ in range(size)]
        self._idle: queue.SimpleQueue[Nursery] = queue.SimpleQueue()
        for nursery in self._nurseries:
            self._idle.put(nursery)

    @contextmanager
    def nursery(self) -> Iterator[Nursery]:
        """Lend a nursery."""
        nursery = self._idle.get()
        try:
            yield nursery
        finally:
            self._idle.put(nursery)

    def map(self, work: Callable[[Nursery, T], R], items: Iterable[T]) -> Iterator[R]:
        """Do `work` on each item, side by side; yield the results in order."""

        def one(item: T) -> R:
            with self.nursery() as nursery:
                return work(nursery, item)

        with ThreadPoolExecutor(self.size) as pool:
            yield from pool.map(one, items)

    def close(self) -> None:
        for nursery in self._nurseries:
            nursery.close()


@contextmanager
def open_range(*preload: str) -> Iterator[Range]:
    """Start one nursery for each processor, with the modules `preload` imported beforehand."""
    made = Range(len(os.sched_getaffinity(0)), *preload)
    try:
        yield made
    finally:
        made.close()


def has_strace() -> bool:
    """Tell whether processes can be traced here."""
    return shutil.which("strace") is not None


def carry_out(range_: Range, strikes: Iterable[Strike], tally: Tally, say: Say) -> int:
    """Carry out strikes side by side, add what they find to `tally`, and return how many hit."""
    strikes = list(strikes)
    hits = 0
    results = zip(strikes, range_.map(_carry_out, strikes), strict=True)
    for number, (strike, found) in enumerate(results, 1):
        if found is None:
            say(f"missed: {strike.name}")
            continue
        hits += 1
        for violation in found:
            tally.fail(strike.name, violation.harm, violation.what)
            say(f"FAILED {strike.name}: {violation}")
        if number % SHOWN_EVERY == 0:
            say(f"{number} of {len(strikes)}")
    return hits


def _carry_out(nursery: Nursery, strike: Strike) -> list[Violation] | None:
    for _ in range(TRIES):
        with suppress(Missed):
            return strike.carry_out(nursery)
    return None


def begin_life(folder: Path) -> Life:
    """Begin a life in a world below `folder`, beside which there is room for traces."""
    life = Life(folder / "world")
    life.begin()
    return life


def find_nothing(life: Life) -> list[Violation]:
    """Look at a life that has nothing more to be judged by."""
    return []


def record(
    nursery: Nursery,
    first: Point | None = None,
    bug: str | None = None,
    *,
    begin: Callable[[Path], Life] = begin_life,
) -> Recording:
    """Trace a life, or what comes after it was killed at `first`, and return its calls."""
    with new_world() as folder:
        life = begin(folder)
        if first is not None:
            strike_at(life, nursery, first, "signal=KILL", folder / "strike", bug)
        traces = folder / "traces"
        traces.mkdir()
        life.run(nursery, Startup(bug=bug, record=str(traces)))
        return read_recording(traces, life.base)


def kill(
    nursery: Nursery,
    points: Sequence[Point],
    bug: str | None = None,
    *,
    begin: Callable[[Path], Life] = begin_life,
    inspect: Callable[[Life], list[Violation]] = find_nothing,
) -> list[Violation]:
    """Kill a life at a point, then at the next while it recovers, and so on; let it go on, and judge it.

    A point of a worker kills that worker alone, unless the point takes the daemon along. Raises Missed when a
    life ended without its point.
    """
    with new_world() as folder:
        life = begin(folder)
        found: list[Violation] = []
        code = 0
        for number, point in enumerate(points):
            code = strike_at(life, nursery, point, "signal=KILL", folder / f"strike-{number}", bug)
            found += reader_violations(life.base, life.said())
        if code != 0:
            code = life.run(nursery, Startup(bug=bug))
        if code != 0:
            found.append(Violation("half", f"the daemon ended with {code}: {_last_line(life)}"))
        return found + judge(life, nursery, bug) + inspect(life)


def strike_at(
    life: Life, nursery: Nursery, point: Point, action: str, log: Path, bug: str | None = None
) -> int:
    """Run a daemon with a trap at `point` and return its code; raise Missed if nothing was caught in it."""
    code = life.run(nursery, Startup(traps=[point.trap(life.base, action, log)], bug=bug))
    _wait_for_the_dead(life)
    trace = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""  # no such worker
    if not _was_struck(trace, point, action):
        raise Missed(str(point))
    return code


def _was_struck(trace: str, point: Point, action: str) -> bool:
    if action.startswith("error="):
        return "(INJECTED)" in trace
    return trace.count(f"{point.call}(") == point.occurrence and "+++ killed by SIGKILL +++" in trace


def _wait_for_the_dead(life: Life) -> None:
    """Wait for the processes that die with the one that was killed; who does not is found by the judge."""
    deadline = time.monotonic() + DEATH_SECONDS
    while life.left_behind() and time.monotonic() < deadline:
        time.sleep(0.002)


def judge(life: Life, nursery: Nursery, bug: str | None = None) -> list[Violation]:
    """Return what is wrong now that nothing is left to do, and what another daemon would change."""
    found = violations(life.base, life.drops) + world_violations(life)
    before = fingerprint(life.base)
    code = life.run(nursery, Startup(bug=bug))
    after = fingerprint(life.base)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if code != 0 or changed:
        found.append(Violation("half", f"running once more ended with {code} and changed {changed}"))
    return found


def _last_line(life: Life) -> str:
    return (life.said().splitlines() or ["(it said nothing)"])[-1]
