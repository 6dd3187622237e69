"""Commands that tell the daemon what to do: pause, resume, skip, stop."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import durable
from cli.terminal import HERE, Base, Reason, console, known_status, open_base
from config import Paths
from monitoring.training_status import read_status

ACKNOWLEDGE_SECONDS = 30.0


def pause(base: Base = HERE, reason: Reason = "") -> None:
    """Save an exact checkpoint and free the GPU; stays paused until resumed, also across restarts."""
    _command(base, "pause", reason)


def resume(base: Base = HERE, reason: Reason = "") -> None:
    """Go on from the exact step where it was paused."""
    _command(base, "resume", reason)


def skip(base: Base = HERE, reason: Reason = "") -> None:
    """Give up the current file; it goes to inbox/skipped/."""
    _command(base, "skip", reason)


def stop(base: Base = HERE, reason: Reason = "") -> None:
    """Save and end the daemon; the job goes on at the next start."""
    _command(base, "stop", reason)


def _command(base: Path, command: str, reason: str) -> None:
    """Write a control file and wait until the daemon has obeyed, if one lives."""
    paths, _ = open_base(base)
    is_running = _is_running(paths)
    if command == "stop" and not is_running:
        console.print("No daemon runs here; nothing to stop.")
        return
    asked_at = datetime.now(UTC)
    durable.write_bytes(paths.control(command), reason.encode())
    if not is_running:
        console.print(f"No daemon runs here; .{command} waits for the next one.")
        return
    deadline = time.monotonic() + ACKNOWLEDGE_SECONDS
    while time.monotonic() < deadline:
        answer = known_status(paths).status.control
        if answer is not None and answer.command == command and answer.received_at >= asked_at:
            place = "" if answer.step is None else f" at step {answer.step}"
            done = answer.message or ("done" if answer.applied_at else "received, being done")
            console.print(f"{command}: {done}{place}", markup=False)
            return
        time.sleep(0.1)
    console.print(f"The daemon has not answered within {ACKNOWLEDGE_SECONDS:.0f} s; look at: trainbox status")


def _is_running(paths: Paths) -> bool:
    reading = read_status(paths)
    return reading is not None and reading.is_running
