"""The life that is interrupted: a base folder, four files dropped into it, a daemon that works until idle.

Everything lies in a `world`, a folder that holds the base folder, a witness outside of it, and what the
daemons printed. Files are trained by the stub worker, which writes down every record it trains.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import yaml

from config import Paths
from tests.crash.nursery import STUB, Nursery, Request
from tests.crash.startup import Startup

LONGEST_LIFE_SECONDS = 300.0
SETTINGS: Mapping[str, Any] = {
    "inbox": {"settle_seconds": 0.0, "poll_seconds": 0.01},
    # What is written by the clock would come at another place in every run.
    "monitoring": {"status_seconds": 3600.0},
    "disk": {"min_free_bytes": 0},
    # A life on a small disk needs none; the embedded one would be counted on to be fetched.
    "model": {"base": "./nowhere"},
}
WITNESS = "outside"
WITNESS_TEXT = "nobody changes this\n"


@dataclass(frozen=True)
class Drop:
    """One dropped file and what shall become of it."""

    name: str
    content: bytes
    folder: str
    """Where it lies in the end: ``done`` or ``rejected``."""
    trained: tuple[tuple[str, int], ...] = ()
    """Each record with how often it is trained; the stub writes that down."""
    held_out: tuple[str, ...] | None = ()
    """Which are kept for evaluation; None where that is not known."""
    is_duplicate: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def make_drop(
    name: str,
    texts: Sequence[str],
    *,
    held_out: Sequence[str] = (),
    epochs: int = 1,
    steps: int = 2,
    checkpoint_every: int = 1,
    refuse: str | None = None,
) -> Drop:
    """Return a file of records that the stub trains, or refuses."""
    script = {"steps": steps, "epochs": epochs, "checkpoint_every": checkpoint_every, "refuse": refuse}
    records = [{"text": text} for text in texts] + [{"text": text, "held_out": True} for text in held_out]
    lines = [json.dumps(document) for document in ({"stub": script}, *records)]
    return Drop(
        name=name,
        content="".join(line + "\n" for line in lines).encode(),
        folder="done" if refuse is None else "rejected",
        trained=tuple((text, epochs) for text in texts) if refuse is None else (),
        held_out=tuple(held_out) if refuse is None else (),
    )


def four_drops() -> tuple[Drop, ...]:
    """Return two good files, one refused, and one whose bytes were there before."""
    first = make_drop("a.jsonl", ["a one", "a two", "a three"], held_out=["a four"], epochs=2, steps=3)
    second = make_drop("b.jsonl", ["b one", "b two"])
    refused = make_drop("c.jsonl", ["c one"], refuse="nothing in it can be trained")
    twin = Drop("d.jsonl", first.content, "done", is_duplicate=True)
    return first, second, refused, twin


DROPS = four_drops()


class Life:
    """One base folder in a world of its own."""

    def __init__(
        self,
        world: Path,
        drops: Sequence[Drop] = DROPS,
        *,
        settings: Mapping[str, Any] = SETTINGS,
        worker: str = STUB,
    ) -> None:
        """Name the places; `begin` makes them, and a world that is there already is taken as it is.

        `settings` are the sections of config.yaml; `worker` is a module whose `main` is the worker.
        """
        self.world = world
        self.base = world / "base"
        self.paths = Paths(self.base)
        self.drops = tuple(drops)
        self.settings = settings
        self.worker = worker
        self.output = world / "daemon.out"

    def begin(self) -> None:
        """Make the base folder with its configuration, and drop the files."""
        self.base.mkdir(parents=True)
        self.paths.create()
        self.paths.config_file.write_text(yaml.safe_dump(dict(self.settings)), encoding="utf-8")
        for drop in self.drops:
            (self.paths.inbox / drop.name).write_bytes(drop.content)
        (self.world / WITNESS).write_text(WITNESS_TEXT, encoding="utf-8")

    def run(
        self,
        nursery: Nursery,
        startup: Startup | None = None,
        *,
        overrides: Sequence[str] = (),
        seconds: float = LONGEST_LIFE_SECONDS,
    ) -> int:
        """Run a daemon until it is idle or dead, and return its return code, -9 also if it took too long."""
        pid = nursery.start(
            Request(str(self.base), str(self.output), list(overrides), self.worker, startup or Startup())
        )
        alarm = Timer(seconds, os.kill, (pid, signal.SIGKILL))
        alarm.start()
        try:
            return nursery.wait()
        finally:
            alarm.cancel()

    def said(self) -> str:
        """Return what the daemons of this life have printed so far."""
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def left_behind(self) -> list[int]:
        """Return the processes that are in the base folder: daemons, workers, and what they started."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if entry.name.isdigit() and os.readlink(entry / "cwd") == str(self.base):
                    found.append(int(entry.name))
        return found


def planned(drops: Sequence[Drop]) -> Counter[str]:
    """Return how often each record is trained over the whole lineage."""
    return Counter({text: times for drop in drops for text, times in drop.trained})


@contextmanager
def new_world() -> Iterator[Path]:
    """Make a folder for one life, in memory where the machine has such a place, and remove it."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="crash-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder).resolve()


def copy_world(source: Path, destination: Path) -> None:
    """Copy a world with its links, for another life that goes on from there."""
    shutil.copytree(source, destination, symlinks=True)
