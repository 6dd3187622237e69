"""What must hold at the instant of a crash, and what must hold once a daemon has gone on from there.

Looked at from outside: bytes, names and hashes on the disk, against what was dropped and what was said.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import durable
from config import Paths, load_config
from errors import IntegrityError, TrainboxError
from monitoring.training_status import read_status
from tests.crash.life import DROPS, WITNESS, WITNESS_TEXT, Drop, Life, planned
from tests.crash.tally import Harm
from tests.stub_worker import TRAINED
from training.ledger.upkeep import ledger_differences

INBOX_FOLDERS = ("", "processing", "done", "rejected", "failed", "skipped")
OUTCOMES = {"done": "completed", "rejected": "refused", "failed": "failed", "skipped": "skipped"}
COMPANIONS = (".report.json", ".report.txt", ".refused.jsonl")
TEMPORARY = re.compile(r".*\.(partial|tmp|removed)$")
CLAIMED = re.compile(r"Claimed inbox/\S+ as job (\S+) ")
PROMOTED = re.compile(r"Moved current from \S+ to v(\d+):")
FILED = re.compile(r"Filed job \S+ \(\w+\) as (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Violation:
    """One thing found that must not be."""

    harm: Harm
    what: str

    def __str__(self) -> str:
        return f"{self.harm}: {self.what}"


def reader_violations(base: Path, said: str = "") -> list[Violation]:
    """Judge the state as a crash left it, before anything is recovered; `said` is what daemons printed."""
    paths = Paths(base)
    return [
        *_current_violations(paths),
        *_torn_versions(paths),
        *_status_violations(paths, is_at_rest=False),
        *_broken_promises(paths, said),
    ]


def violations(base: Path, drops: Sequence[Drop] = DROPS, *, after_fault: bool = False) -> list[Violation]:
    """Judge the state after a daemon has gone on and found nothing left to do.

    With `after_fault` a daemon may have been kept from writing its last status, so that it is one that a
    reader knows to be of a daemon that is gone, and from tidying up, which the next daemon does.
    """
    paths = Paths(base)
    return [
        *_current_violations(paths),
        *_torn_versions(paths),
        *_status_violations(paths, is_at_rest=True, after_fault=after_fault),
        *_misplaced(paths, drops),
        *_lineage_violations(paths, drops),
        *_job_violations(paths, drops),
        *_held_out_violations(paths, drops),
        *([] if after_fault else [*_leftovers(base), *ledger_violations(base)]),
    ]


def ledger_violations(base: Path) -> list[Violation]:
    """The ledger equals what the directories say."""
    try:
        differences = ledger_differences(Paths(base), load_config(base))
    except TrainboxError as error:
        return [Violation("half", f"the ledger cannot be read: {error}")]
    return [Violation("half", f"the ledger differs: {difference}") for difference in differences]


def world_violations(life: Life) -> list[Violation]:
    """Judge what lies around the base folder, and that nobody still works in it."""
    found = sorted(entry.name for entry in life.world.iterdir())
    expected = sorted(["base", WITNESS, life.output.name])
    strangers = [
        Violation("half", f"{name} lies beside the base folder") for name in set(found) ^ set(expected)
    ]
    if (life.world / WITNESS).read_text(encoding="utf-8") != WITNESS_TEXT:
        strangers.append(Violation("lost", "a file outside the base folder was changed"))
    return strangers + [Violation("half", f"process {pid} was left behind") for pid in life.left_behind()]


def fingerprint(base: Path) -> dict[str, str]:
    """Return every path of a base folder with its hash; a second daemon with nothing to do changes none.

    Left out is what tells of the daemon itself: its status, its log, its lock, its index.
    """
    own = {"status/training_status.json", "status/daemon.lock", "status/ledger.db", "logs/daemon.log"}
    return {
        name: _describe(path)
        for path in sorted(base.rglob("*"))
        if (name := str(path.relative_to(base))) not in own
    }


def _describe(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    return "folder" if path.is_dir() else durable.sha256_file(path)


# The parts


def _current_violations(paths: Paths) -> Iterator[Violation]:
    """Whoever follows `current` finds a whole version."""
    if not paths.current.is_symlink():
        return
    try:
        durable.verify_folder(paths.current)
    except (OSError, IntegrityError) as error:
        yield Violation("half", f"current does not load: {error}")


def _torn_versions(paths: Paths) -> Iterator[Violation]:
    """A folder with a version's name is whole."""
    for folder in sorted(paths.versions.glob("v*")):
        try:
            durable.verify_folder(folder)
        except (OSError, IntegrityError) as error:
            yield Violation("half", f"version {folder.name} is torn: {error}")


def _status_violations(paths: Paths, *, is_at_rest: bool, after_fault: bool = False) -> Iterator[Violation]:
    """The status is a document whose claims are true."""
    try:
        reading = read_status(paths)
    except IntegrityError as error:
        yield Violation("half", f"the status cannot be read: {error}")
        return
    if reading is None:
        if is_at_rest:
            yield Violation("half", "there is no status")
        return
    status = reading.status
    if status.version is not None and not (paths.versions / status.version).is_dir():
        yield Violation("lost", f"the status names {status.version}, which is not there")
    if is_at_rest and not (after_fault and reading.is_stale):
        current = os.path.basename(os.readlink(paths.current)) if paths.current.is_symlink() else None
        claims = (status.state, status.version, status.batch_queue_size)
        if claims != ("stopped", current, 0):
            yield Violation("half", f"the status claims {claims}, expected stopped, {current}, none waiting")


def _broken_promises(paths: Paths, said: str) -> Iterator[Violation]:
    """What a daemon has printed is so."""
    for job_id in CLAIMED.findall(said):
        if not list(paths.run(job_id).data.glob("input*")):
            yield Violation("lost", f"job {job_id} was claimed, but its private copy is gone")
    promoted = max((int(number) for number in PROMOTED.findall(said)), default=0)
    if promoted and not paths.current.is_symlink():
        yield Violation("lost", f"version {promoted} was made current, but there is none")
    elif promoted and int(os.readlink(paths.current).rpartition("v")[2]) < promoted:
        yield Violation("lost", f"version {promoted} was made current, but it no longer is")
    for place in FILED.findall(said):
        if not (paths.base / place).is_file():
            yield Violation("lost", f"{place} was filed, but is not there")


def _misplaced(paths: Paths, drops: Sequence[Drop]) -> Iterator[Violation]:
    """Each dropped file lies in exactly one place, with its bytes, and the report beside it."""
    lying: dict[str, list[str]] = {}
    for folder in INBOX_FOLDERS:
        for path in (paths.inbox / folder).iterdir():
            if path.is_file() and not path.name.endswith(COMPANIONS):
                lying.setdefault(durable.sha256_file(path), []).append(f"{folder}/{path.name}")
    for sha256, wanted in _by_content(drops).items():
        found = sorted(lying.pop(sha256, []))
        if found != sorted(wanted):
            harm: Harm = (
                "lost" if len(found) < len(wanted) else "double" if len(found) > len(wanted) else "half"
            )
            yield Violation(harm, f"found {found}, expected {sorted(wanted)}")
    for places in lying.values():
        yield Violation("half", f"{places} hold bytes that nobody dropped")
    for drop in drops:
        report = paths.inbox / drop.folder / f"{drop.name}.report.json"
        if not report.is_file():
            yield Violation("lost", f"{drop.folder}/{drop.name} has no report")
        elif not isinstance(_read(report), dict):
            yield Violation("half", f"{report.name} is no JSON document")


def _by_content(drops: Sequence[Drop]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for drop in drops:
        places.setdefault(drop.sha256, []).append(f"{drop.folder}/{drop.name}")
    return places


def _lineage_violations(paths: Paths, drops: Sequence[Drop]) -> Iterator[Violation]:
    """Each trained file is in one manifest of one unbroken chain, each record trained as often as planned."""
    manifests = [_read(folder / durable.MANIFEST) for folder in sorted(paths.versions.glob("v*"))]
    if not all(isinstance(manifest, dict) for manifest in manifests):
        return  # torn, which is told elsewhere
    trained = [drop for drop in drops if drop.folder == "done" and not drop.is_duplicate]
    yield from _compare_counts(
        "file",
        Counter(manifest["input_sha256"] for manifest in manifests),
        Counter(d.sha256 for d in trained),
    )
    yield from _compare_counts(
        "job",
        Counter(manifest["job_id"] for manifest in manifests),
        Counter({m["job_id"]: 1 for m in manifests}),
    )
    parents = [manifest["parent"] for manifest in manifests]
    names = [manifest["version"] for manifest in manifests]
    if parents != [None, *names][: len(names)]:
        yield Violation("half", f"the versions {names} continue {parents}")
    if not names:
        return
    current = paths.current.resolve()
    if current.name != names[-1]:
        yield Violation("half", f"current is {current.name}, expected the newest, {names[-1]}")
    if (current / TRAINED).is_file():
        yield from _compare_counts("record", Counter(_read(current / TRAINED) or {}), planned(trained))


def _compare_counts(what: str, found: Counter[str], expected: Counter[str]) -> Iterator[Violation]:
    for name in sorted(found.keys() | expected.keys()):
        if found[name] != expected[name]:
            harm: Harm = "lost" if found[name] < expected[name] else "double"
            yield Violation(harm, f"{what} {name!r} trained {found[name]} times, expected {expected[name]}")


def _job_violations(paths: Paths, drops: Sequence[Drop]) -> Iterator[Violation]:
    """Each file that is no duplicate became one job, which is finished as it should be."""
    expected = Counter(drop.sha256 for drop in drops if not drop.is_duplicate)
    documents = [_read(folder / "job.json") for folder in sorted(paths.runs.glob("[0-9]*"))]
    jobs = [document for document in documents if isinstance(document, dict)]
    if len(jobs) != len(documents):
        yield Violation("half", f"{len(documents) - len(jobs)} runs have no readable job.json")
    found = Counter(job["sha256"] for job in jobs)
    if found != expected:
        yield Violation("double" if found - expected else "lost", f"jobs of {found}, expected {expected}")
    outcome = {drop.sha256: OUTCOMES[drop.folder] for drop in drops if not drop.is_duplicate}
    for job in jobs:
        if (job["state"], job["outcome"]) != ("finished", outcome.get(job["sha256"])):
            yield Violation("half", f"job {job['job_id']} is {job['state']}, {job['outcome']}")


def _held_out_violations(paths: Paths, drops: Sequence[Drop]) -> Iterator[Violation]:
    """Held-out records are kept, once."""
    if any(drop.held_out is None for drop in drops):
        return
    kept = Counter(
        json.loads(line)["text"]
        for file in paths.held_out.glob("*.jsonl")
        for line in file.read_bytes().splitlines()
    )
    expected = Counter(text for drop in drops if not drop.is_duplicate for text in drop.held_out or ())
    if kept != expected:
        yield Violation("lost" if expected - kept else "double", f"held out {kept}, expected {expected}")


def _leftovers(base: Path) -> Iterator[Violation]:
    """Nothing unfinished remains."""
    for path in sorted(base.rglob("*")):
        if TEMPORARY.match(path.name) is not None:
            yield Violation("half", f"{path.relative_to(base)} was left behind")


def _read(path: Path) -> Any:
    """Return a JSON document, or None when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
