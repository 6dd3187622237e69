"""Which good record is trained and which is held out, and whether it was there before."""

from __future__ import annotations

import hashlib
import heapq
import sqlite3
from dataclasses import dataclass
from types import TracebackType

_CACHE_KIBIBYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Accepted:
    """A good record as it will be stored, and what it costs to train."""

    line: int
    stored: bytes
    """Its line of ``train.jsonl`` or ``held_out.jsonl``."""
    rows: int
    """How many sequences it becomes; more than one when it is split."""
    tokens: int


class SeenKeys:
    """The keys of all records so far: exact, and beyond its cache on disk instead of in memory."""

    def __init__(self) -> None:
        # The empty name is SQLite's private temporary database; it vanishes when it is closed.
        self._database = sqlite3.connect("", isolation_level=None)
        for statement in (
            f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}",
            "PRAGMA journal_mode = OFF",
            "PRAGMA synchronous = OFF",
            "CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement)

    def __enter__(self) -> SeenKeys:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, key: bytes) -> bool:
        """Remember `key`; return whether it is new."""
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (key,)).rowcount == 1


class HeldOutSample:
    """A seeded sample of a file's records, chosen by hash, so that order and neighbours do not matter.

    Every record draws a number from its key and the seed. Those that draw below `fraction` are held out;
    when they are more than `max_records`, those with the smallest numbers, from all over the file.
    """

    def __init__(self, fraction: float, max_records: int, seed: int) -> None:
        self._threshold = int(fraction * 2**64) if max_records else 0
        self._max_records = max_records
        self._seed = seed.to_bytes(16, "little", signed=True)
        self._held: list[tuple[int, int, Accepted]] = []

    def __len__(self) -> int:
        return len(self._held)

    def offer(self, key: bytes, record: Accepted) -> Accepted | None:
        """Return the record that is to be trained: this one, the one it displaced, or none."""
        draw = int.from_bytes(hashlib.blake2b(key, digest_size=8, key=self._seed).digest(), "big")
        if draw >= self._threshold:
            return record
        entry = (-draw, record.line, record)
        if len(self._held) < self._max_records:
            heapq.heappush(self._held, entry)
            return None
        return heapq.heappushpop(self._held, entry)[2]

    def take_all(self) -> list[Accepted]:
        """Empty the sample and return its records in the order of the file."""
        records = sorted((entry[2] for entry in self._held), key=lambda record: record.line)
        self._held.clear()
        return records
