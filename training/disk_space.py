"""Whether a job fits on the disk: what a run is going to write, and what has to stay free beside it.

The forecast is made without torch and from sizes alone: those of the run's own checkpoints where there are
any, else of the version it continues, else of the layers of the base model that get an adapter. Bytes and
inodes are looked at alike: a file system may run out of either.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

import durable
from config import Config, Paths, RunPaths, TrainConfig, load_config
from errors import EnvironmentNotReady, IntegrityError, UsageError
from training.base_model import EMBEDDED, find_base
from training.jobs import Job
from training.versions import VersionStore

logger = logging.getLogger(__name__)

RESERVED_INODES = 64
"""Files and folders that must stay possible beside those of a run: status, logs, reports."""
FILES_OF_A_CHECKPOINT = 16
FILES_OF_A_RUN = 24
PACKED_RATIO = 8.0
"""Bytes of text in a byte of a compressed input, as a rule; after validation the real size is known."""
TOKEN_BYTES_PER_RECORD_BYTE = 3.2
"""A token is two and a half bytes of text or more, as a rule; on disk eight: its id and its label."""
LOG_BYTES = 2**20
"""Events, logs and reports of a run."""
BYTES_PER_WEIGHT = 3 * 4
"""An adapter weight and its two moments, in float32."""
EMBEDDED_BYTES = 500 * 2**20
"""Space in which the embedded base model is fetched, unpacked and converted: 0.1, 0.1 and 0.27 GB."""
_PACKED_SUFFIXES = (".gz", ".parquet")
_MAX_HEADER_BYTES = 100 * 2**20


@dataclass(frozen=True, slots=True)
class Need:
    """What something is going to take of a file system."""

    size_bytes: int
    inodes: int

    def __add__(self, other: Need) -> Need:
        return Need(self.size_bytes + other.size_bytes, self.inodes + other.inodes)

    def times(self, count: int) -> Need:
        return Need(self.size_bytes * count, self.inodes * count)


@dataclass(frozen=True, slots=True)
class Room:
    """What is free for users that are not root; `inodes` is None where a file system does not count them."""

    size_bytes: int
    inodes: int | None


NOTHING = Need(0, 0)


class Reserve:
    """What has to stay free, as it was when last looked at; each change is logged once."""

    def __init__(
        self, folder: Path, min_free_bytes: int, look_seconds: float, clock: Callable[[], float]
    ) -> None:
        """`look_seconds` is the time between two looks while a run writes."""
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._look_seconds = look_seconds
        self._clock = clock
        self._look_at = clock()
        self.shortage: str | None = None
        """What is missing."""

    def has_room_for(self, need: Need) -> bool:
        """Look whether `need` fits beside the reserve."""
        found = shortage(self._folder, need, self._min_free_bytes)
        if found is not None and self.shortage is None:
            logger.warning("Waiting for room: %s", found)
        elif found is None and self.shortage is not None:
            logger.info("There is room on the disk again")
        self.shortage = found
        return found is None

    def watch(self) -> None:
        """Look now and then, until it is touched: a run has to end while there is room to save."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + self._look_seconds
            if self.shortage is None:
                self.has_room_for(NOTHING)


def room_in(folder: Path) -> Room:
    """Return what is free on the file system of `folder`."""
    found = os.statvfs(folder)
    return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def shortage(folder: Path, need: Need, min_free_bytes: int) -> str | None:
    """Say what is missing for `need` with the reserve left alone; None when it fits."""
    room = room_in(folder)
    wanted = need.size_bytes + min_free_bytes
    if room.size_bytes < wanted:
        return (
            f"the disk of {folder} has {_show(room.size_bytes)} free, expected {_show(wanted)}: "
            f"{_show(need.size_bytes)} to write and {_show(min_free_bytes)} to leave free "
            "(disk.min_free_bytes); free some space"
        )
    wanted_inodes = need.inodes + RESERVED_INODES
    if room.inodes is not None and room.inodes < wanted_inodes:
        return (
            f"the disk of {folder} has room for {room.inodes} more files (inodes), expected "
            f"{wanted_inodes}: {need.inodes} to write and {RESERVED_INODES} to leave free; "
            "remove files that are not needed"
        )
    return None


def demand(folder: Path, need: Need, min_free_bytes: int) -> None:
    """Raise EnvironmentNotReady when `need` does not fit."""
    reason = shortage(folder, need, min_free_bytes)
    if reason is not None:
        raise EnvironmentNotReady(reason)


def forecast(paths: Paths, job: Job) -> Need:
    """Return what the run of `job` is still going to write, from its own settings and files.

    At the worst moment there are ``train.save_total_limit`` checkpoints, one more that is just being
    written, and the version that is put together. What lies there already is not counted again.
    """
    run = paths.run(job.job_id)
    try:
        config = load_config(run.folder)
    except UsageError as error:
        logger.warning("No forecast of job %s: %s", job.job_id, error)
        return NOTHING  # the worker is about to say the same and to fail the job
    checkpoint = _checkpoint_size(paths, run, config)
    there = len(_checkpoints(run))
    copies = max(1, config.train.save_total_limit + 1 - there) + 1
    need = Need(checkpoint, FILES_OF_A_CHECKPOINT).times(copies)
    return need + Need(LOG_BYTES, FILES_OF_A_RUN) + _rows(run, job) + _base_model(paths, config)


def _rows(run: RunPaths, job: Job) -> Need:
    """Return what validation and tokenisation are still going to write."""
    if (run.tokens / durable.MANIFEST).is_file():
        return NOTHING
    if run.report.is_file() and run.train_records.is_file():
        records = float(run.train_records.stat().st_size)
        written = 0.0
    else:  # the accepted records are written once more, in their normal form
        ratio = PACKED_RATIO if job.suffix.endswith(_PACKED_SUFFIXES) else 1.0
        records = written = job.size_bytes * ratio
    return Need(int(written + records * TOKEN_BYTES_PER_RECORD_BYTE), FILES_OF_A_RUN)


def _base_model(paths: Paths, config: Config) -> Need:
    """Return what the first run with the embedded model takes to prepare it."""
    is_to_be_made = config.model.base == EMBEDDED and find_base(paths, EMBEDDED) is None
    return Need(EMBEDDED_BYTES, FILES_OF_A_RUN) if is_to_be_made else NOTHING


def _checkpoint_size(paths: Paths, run: RunPaths, config: Config) -> int:
    checkpoints = _checkpoints(run)
    if checkpoints:
        return _manifest_bytes(checkpoints[-1])
    try:
        parent = VersionStore(paths).current()
    except IntegrityError:
        parent = None  # the worker says so; here only its size is missing
    if parent is not None:
        return _manifest_bytes(parent.folder)
    base = find_base(paths, config.model.base)
    if base is None:
        return 0
    tokenizer = sum(path.stat().st_size for path in base.glob("tokenizer*"))
    return adapter_weights(base, config.train) * BYTES_PER_WEIGHT + tokenizer


def _checkpoints(run: RunPaths) -> list[Path]:
    """Return the sealed checkpoints of a run by step; their bytes are the worker's to check."""
    sealed = [folder for folder in run.folder.glob("checkpoint-*") if (folder / durable.MANIFEST).is_file()]
    return sorted(sealed, key=lambda folder: int(folder.name.removeprefix("checkpoint-")))


def _manifest_bytes(folder: Path) -> int:
    """Return the size of a sealed folder as its manifest tells it."""
    try:
        files = durable.read_manifest(folder)["files"]
    except IntegrityError:
        return 0
    return sum(int(entry["size_bytes"]) for entry in files.values())


def adapter_weights(base: Path, config: TrainConfig) -> int:
    """Return how many weights a new adapter on the model in `base` has.

    Each matrix of shape (out, in) that gets an adapter adds ``r * (in + out)``. Read from the headers of the
    safetensors files, so that no weight is loaded.
    """
    wanted = config.lora_target_modules
    weights = 0
    for name, shape in _shapes(base):
        layer = name.removesuffix(".weight")
        is_linear = (
            len(shape) == 2 and layer != name and not layer.endswith(("embed_tokens", "lm_head", "wte"))
        )
        is_chosen = wanted == "all-linear" or layer.rpartition(".")[2] in wanted
        if is_linear and is_chosen:
            weights += config.lora_r * sum(shape)
    return weights


def _shapes(base: Path) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(base.glob("*.safetensors")):
        for name, entry in _header(path).items():
            if name != "__metadata__":
                yield name, entry["shape"]


def _header(path: Path) -> dict[str, Any]:
    """Return the header of a safetensors file: 8 bytes of length, then JSON."""
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        if length > _MAX_HEADER_BYTES:
            return {}
        header = orjson.loads(file.read(length))
    return dict(header)


def _show(size_bytes: int) -> str:
    """Return a size with three digits and the number of bytes, so that two of them can be compared."""
    size, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}"
