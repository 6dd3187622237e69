"""Have every call that changes something fail once: the daemon waits or fails the job, and says why."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from tests.crash.invariants import Violation, reader_violations, violations
from tests.crash.life import Drop, Life, new_world
from tests.crash.nursery import Nursery
from tests.crash.points import Point
from tests.crash.strike import Range, Say, Strike, begin_life, carry_out, judge, open_range, record, strike_at
from tests.crash.tally import Tally

ALWAYS = ("ENOSPC", "EIO")
SOMETIMES = ("EDQUOT", "EMFILE", "EROFS", "EACCES")
SHARE = 7
"""Every so many-th point meets one of the errors of `SOMETIMES`."""
MISSED_SHARE = 0.1


def run(say: Say, seed: int = 0) -> Tally:
    """Let every call fail by a full disk and by a broken one, and a sample of them in other ways."""
    tally = Tally()
    with open_range() as range_:
        with range_.nursery() as nursery:
            points = record(nursery).points
        faults = [(point, error) for point in points for error in ALWAYS]
        others = random.Random(seed).sample(points, len(points) // SHARE)
        faults += [(point, SOMETIMES[number % len(SOMETIMES)]) for number, point in enumerate(others)]
        say(f"faults: {len(faults)}")
        fail_each(range_, faults, tally, say)
    return tally


def fail_each(range_: Range, faults: Sequence[tuple[Point, str]], tally: Tally, say: Say) -> None:
    """Let one call fail in a life of its own, for each of `faults`."""
    strikes = [
        Strike(f"{error} of {point}", partial(fail, point=point, error=error)) for point, error in faults
    ]
    hits = carry_out(range_, strikes, tally, say)
    tally.faults += hits
    assert hits >= (1 - MISSED_SHARE) * len(strikes) - 1, f"only {hits} of {len(strikes)} calls failed"


def fail(nursery: Nursery, point: Point, error: str) -> list[Violation]:
    """Let one call fail; a daemon that ends with a message is started again, as systemd would."""
    with new_world() as folder:
        life = begin_life(folder)
        code = strike_at(life, nursery, point, f"error={error}", folder / "strike")
        found = reader_violations(life.base, life.said()) + _told_badly(life, code)
        if code != 0 and (code := life.run(nursery)) != 0:
            found.append(Violation("half", f"the daemon ended with {code} after the fault was gone"))
        reason = os.strerror(getattr(errno, error))
        life.drops = tuple(_as_it_ended(life, drop) for drop in life.drops)
        found += [
            Violation("half", f"{drop.name} failed, and its report does not say {reason!r}: {message}")
            for drop in life.drops
            if drop.folder == "failed" and reason not in (message := _message(life, drop))
        ]
        found += violations(life.base, life.drops, after_fault=True)
        life.run(nursery)  # who tidies up what the fault kept from being tidied
        return found + judge(life, nursery)


def _told_badly(life: Life, code: int) -> list[Violation]:
    """Return what a person would have to guess."""
    said = life.said()
    if "Traceback" in said:
        return [Violation("half", f"a traceback for a person: {said[said.index('Traceback') :][-300:]}")]
    if code not in (0, 1):
        return [Violation("half", f"the daemon ended with {code}")]
    if code == 1 and "trainbox: " not in said:
        return [Violation("half", "the daemon ended without a message")]
    return []


def _as_it_ended(life: Life, drop: Drop) -> Drop:
    """Return what is expected of a file that may have failed: then it lies in failed/."""
    if drop.is_duplicate or not (life.paths.failed / drop.name).exists():
        return drop
    kept = {
        json.loads(line)["text"]
        for file in life.paths.held_out.glob("*.jsonl")
        for line in file.read_bytes().splitlines()
    }
    held_out = tuple(text for text in drop.held_out or () if text in kept)
    return replace(drop, folder="failed", trained=(), held_out=held_out)


def _message(life: Life, drop: Drop) -> str:
    report = life.paths.failed / f"{drop.name}.report.json"
    message: str = json.loads(report.read_bytes())["job"]["message"] or ""
    return message
