"""What earlier files taught, trained again a little in later runs, so that old skills stay.

Of each trained file a sample is kept for ever: ``models/replay/<job_id>.jsonl``, one line about the file
and then its records. A run draws from the files that the version it continues has learned, by turns, and
seals what it drew in its own folder, so that going on later changes nothing.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict

import durable
from config import DataConfig, Paths, TrainConfig
from intake.formats import Record, content_key
from intake.near_copies import NearCopies, line_and_content
from training.held_out import held_out_files, held_out_keys
from training.jobs import Job
from training.versions import Version, VersionStore

logger = logging.getLogger(__name__)

SAMPLED_RECORDS = 200
"""So many records of each file tell how common its words are."""
MEMORY_BYTES = 32 * 2**20
"""At most so much is kept of one file, however long its records are."""
Way = Literal["answers", "preferences"]


class Remembered(BaseModel):
    """The first line of a file in models/replay/: what its records are."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    job_id: str
    name: str
    """The dropped file's name, escaped for display."""
    way: Way
    """Conversations and texts are trained in one way, preference pairs in another; they never mix."""
    records: int


class Drawn(BaseModel):
    """The document ``data/replay.json`` of a run: what ``data/replay.jsonl`` holds, source by source."""

    model_config = ConfigDict(frozen=True)

    schema_version: int = 1
    parent: str | None
    """The version whose lineage was drawn from."""
    records: dict[str, int]
    """By job: how many of its records were drawn for all epochs together, in the order of the file."""
    withheld: int = 0
    """Records that were passed over because they are held out, or nearly are, by now."""


def remember(paths: Paths, job: Job, config: TrainConfig) -> None:
    """Keep a sample of what a run trains, chosen by hash from all over the file; safe to repeat."""
    destination = paths.replay / f"{job.job_id}.jsonl"
    source = paths.run(job.job_id).train_records
    if destination.exists() or not config.replay_memory_records or not source.exists():
        return
    lines = _sample(source, config.replay_memory_records)
    if not lines:
        return
    way: Way = "preferences" if "chosen" in orjson.loads(lines[0]) else "answers"
    header = Remembered(job_id=job.job_id, name=job.name, way=way, records=len(lines))
    durable.make_folder(paths.replay)
    durable.write_bytes(destination, b"".join([orjson.dumps(header.model_dump()) + b"\n", *lines]))


def sources(paths: Paths, store: VersionStore, parent: Version | None, way: Way) -> list[Remembered]:
    """Return what is remembered of the files that `parent` has learned and that are trained in one way."""
    found = (_header(paths.replay / f"{job_id}.jsonl") for job_id in _lineage(store, parent))
    return [header for header in found if header is not None and header.way == way]


def replayed_rows(own_rows: int, ratio: float) -> int:
    """Return how many rows beside `own_rows` make up the share `ratio` of all of them."""
    return round(own_rows * ratio / (1 - ratio))


def shares(wanted: int, available: Mapping[str, int]) -> dict[str, int]:
    """Divide `wanted` among the sources as evenly as what each of them has allows.

    What does not divide goes to the first ones. No source gives more than it has.
    """
    left = min(wanted, sum(available.values()))
    level = 0
    for place, most in enumerate(sorted(available.values())):
        # Those before have no more to give; all others give as much as this one, or what is still wanted.
        sharing = len(available) - place
        rise = min(most - level, left // sharing)
        level += rise
        left -= rise * sharing
        if level < most:
            break
    given = {source: min(level, most) for source, most in available.items()}
    for source in [source for source, most in available.items() if most > level][:left]:
        given[source] += 1
    return {source: count for source, count in given.items() if count}


@dataclass(frozen=True)
class Lottery:
    """Draws what a run replays: other records after each version, the same whenever it is asked again."""

    paths: Paths
    job_id: str
    config: TrainConfig
    parent: str | None
    """The version that the run continues."""

    def expected(self, own_rows: int, found: Sequence[Remembered]) -> dict[str, int]:
        """Return how many records of each job an epoch will replay, if none has to be passed over."""
        ordered = sorted(found, key=lambda source: self._ticket(source.job_id.encode()))
        wanted = replayed_rows(own_rows, self.config.replay_ratio)
        return shares(wanted, {source.job_id: source.records for source in ordered})

    def draw(
        self,
        own_rows: int,
        found: Sequence[Remembered],
        data: DataConfig,
    ) -> Drawn:
        """Write what this run replays into its folder, once, or anew when it was drawn for another parent.

        Records that are held out by now, or nearly copies of those, are passed over.
        """
        run = self.paths.run(self.job_id)
        if run.replay_facts.exists():
            drawn = Drawn.model_validate(durable.read_json(run.replay_facts))
            if drawn.parent == self.parent:
                return drawn
            run.replay_facts.unlink()
        records: dict[str, list[Record]] = {}
        withheld = 0
        expected = self.expected(own_rows, found)
        is_held_out = self._held_out(expected, data) if expected else None
        for job_id, share in expected.items():
            records[job_id] = []
            for record in self._shuffled(job_id):
                if is_held_out is not None and is_held_out(record):
                    withheld += 1
                    continue
                records[job_id].append(record)
                if len(records[job_id]) == share * self.config.num_train_epochs:
                    break
        counts = {job_id: len(some) for job_id, some in records.items() if some}
        drawn = Drawn(parent=self.parent, records=counts, withheld=withheld)
        durable.write_bytes(run.replay_records, b"".join(_numbered(chain.from_iterable(records.values()))))
        durable.write_json(run.replay_facts, drawn.model_dump(mode="json"))
        return drawn

    def _held_out(self, job_ids: Iterable[str], data: DataConfig) -> Callable[[Record], bool]:
        """Return what tells whether a record is held out by any file, or nearly a copy of one that is."""
        keys = held_out_keys(self.paths)
        copies = NearCopies(data.near_copy_similarity)
        for job_id in job_ids:
            lines = islice(self._lines(job_id), SAMPLED_RECORDS)
            copies.get_to_know(line_and_content(line)[1] for line in lines)
        for file in held_out_files(self.paths):
            copies.add_file(file)

        def is_held_out(record: Record) -> bool:
            return record.key() in keys or copies.find(orjson.dumps(record.content())) is not None

        return is_held_out

    def _lines(self, job_id: str) -> Iterator[bytes]:
        with open(self.paths.replay / f"{job_id}.jsonl", "rb") as file:
            yield from islice(file, 1, None)

    def _shuffled(self, job_id: str) -> Iterator[Record]:
        """Yield the remembered records of a job in the order that was drawn by lot."""
        for line in sorted(self._lines(job_id), key=self._ticket):
            yield Record.from_json(orjson.loads(line))

    def _ticket(self, what: bytes) -> bytes:
        salt = hashlib.blake2b(f"{self.config.seed} {self.parent}".encode(), digest_size=16).digest()
        return hashlib.blake2b(what, digest_size=16, key=salt).digest()


def _sample(source: Path, most: int) -> list[bytes]:
    """Return the records whose keys are the smallest, in the order of the file."""
    kept: list[tuple[int, int, bytes]] = []
    size = 0
    with open(source, "rb") as lines:
        for number, line in enumerate(lines):
            key = content_key(line.partition(b",")[2])
            heapq.heappush(kept, (-int.from_bytes(key, "big"), number, line))
            size += len(line)
            while len(kept) > most or (size > MEMORY_BYTES and len(kept) > 1):
                size -= len(heapq.heappop(kept)[2])
    return [line for _, _, line in sorted(kept, key=lambda entry: entry[1])]


def _numbered(records: Iterable[Record]) -> Iterator[bytes]:
    """Yield the lines of ``replay.jsonl``, each with its own number."""
    for line, record in enumerate(records, 1):
        yield orjson.dumps(replace(record, line=line).to_json()) + b"\n"


def _lineage(store: VersionStore, parent: Version | None) -> Iterator[str]:
    """Yield the jobs whose files `parent` has learned, the newest first."""
    known = {version.name: version for version in store.list()}
    version = parent
    while version is not None:
        yield version.facts.job_id
        before = version.facts.parent
        version = None if before is None else known.get(before)
        if before is not None and version is None:
            logger.warning("%s is gone: what was learned before it is not replayed", before)


def _header(file: Path) -> Remembered | None:
    """Read the first line of a file in models/replay/; None when nothing was kept of that job."""
    if not file.exists():
        return None
    with open(file, "rb") as lines:
        return Remembered.model_validate_json(lines.readline())
