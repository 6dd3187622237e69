"""What a new version is tested on: its file's held-out records, those of earlier files, and the suites."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from config import EvaluationConfig, Paths
from errors import ConfigError, IntegrityError, UsageError
from evaluation.items import Examined, Item, Passage
from evaluation.suites import Suite, load_suite, suite_names
from training.held_out import held_out_items
from training.version_report import SliceFacts, SliceKind, read_report
from training.versions import Version, VersionStore


@dataclass(frozen=True)
class Slice:
    """Items that are tested together, in an order that a hash draws: a prefix of it is a fair sample.

    The order hangs on nothing but the items, so that every version meets the same ones first and what an
    earlier version's test measured can be used again.
    """

    slice_id: str
    kind: SliceKind
    name: str
    items: tuple[Examined, ...]

    @property
    def asked(self) -> tuple[Item, ...]:
        """Return the items that a model can be asked; of the others there are losses alone."""
        return tuple(item for item in self.items if isinstance(item, Item))

    @property
    def passages(self) -> tuple[Passage, ...]:
        """Return the others."""
        return tuple(item for item in self.items if isinstance(item, Passage))

    def facts(self, records: int) -> SliceFacts:
        """Describe the slice with as many records as were tested."""
        return SliceFacts(slice_id=self.slice_id, kind=self.kind, name=self.name, records=records)


def held_out_slice(paths: Paths, job_id: str, name: str) -> Slice:
    """Return what was held out of the file of a job; without items when nothing was."""
    return _slice(job_id, "held_out", name, held_out_items(paths.held_out / f"{job_id}.jsonl"))


def earlier_slices(paths: Paths, parent: Version | None) -> list[Slice]:
    """Return the held-out slices of every file that `parent` and the versions it continues learned from.

    Files whose version was held are not among them: nothing that came of them is in the model. Raises
    IntegrityError when records that were held out are gone, or the report that names them is damaged.
    """
    if parent is None:
        return []
    learned = _learned_files(VersionStore(paths), parent)
    for told in learned.values():
        _require(paths, told, parent)
    slices = [held_out_slice(paths, job_id, learned[job_id].name) for job_id in sorted(learned)]
    return [found for found in slices if found.items]


def every_held_out_slice(paths: Paths) -> list[Slice]:
    """Return everything that any file has held out, whatever became of its version, oldest first."""
    names = {version.facts.job_id: version.facts.input_name for version in VersionStore(paths).list()}
    jobs = sorted(path.stem for path in paths.held_out.glob("[!.]*.jsonl"))
    slices = [held_out_slice(paths, job_id, names.get(job_id, job_id)) for job_id in jobs]
    return [found for found in slices if found.items]


def suite_slices(paths: Paths, config: EvaluationConfig) -> list[Slice]:
    """Return the configured suites as slices; ConfigError when there is no such suite."""
    return [
        _slice(
            f"{re.sub(r'[^A-Za-z0-9_.-]', '_', suite.name)}-{suite.sha256[:12]}",
            "suite",
            suite.name,
            suite.items,
        )
        for suite in suites_of(paths, config)
    ]


def suites_of(paths: Paths, config: EvaluationConfig) -> list[Suite]:
    """Return the configured suites; the path of a user's own starts at the base folder.

    Raises ConfigError when there is no such suite.
    """
    try:
        names = dict.fromkeys(config.suites)  # one that is named twice counts once
        return [load_suite(name if name in suite_names() else paths.base / name) for name in names]
    except UsageError as error:
        raise ConfigError(f"evaluation.suites: {error}") from error


def _slice(slice_id: str, kind: SliceKind, name: str, items: Sequence[Examined]) -> Slice:
    ordered = sorted(items, key=lambda item: hashlib.sha256(item.item_id.encode()).digest())
    return Slice(slice_id, kind, name, tuple(ordered))


def _learned_files(store: VersionStore, parent: Version) -> dict[str, SliceFacts]:
    """Return, by job, what is told of the held-out records of every file that a version has learned.

    The newest report lists the files before it, so that versions that were removed leave no gap and no older
    report need be read.
    """
    known = {found.name: found for found in store.list()}
    learned: dict[str, SliceFacts] = {}
    report = None
    version: Version | None = parent
    while version is not None:
        facts = version.facts
        if facts.kind == "training":
            own = SliceFacts(
                slice_id=facts.job_id,
                kind="held_out",
                name=facts.input_name,
                records=facts.records.held_out,
            )
            learned.setdefault(facts.job_id, own)
        if report is None:
            report = read_report(version.folder)
            parts = () if report is None else report.slices
            learned |= {part.slice_id: part for part in parts if part.kind == "held_out"}
        version = known.get(facts.parent or "")
    return learned


def _require(paths: Paths, told: SliceFacts, parent: Version) -> None:
    """Raise IntegrityError when a file has held records out and they are gone.

    Nothing would be tested on them any more, and a later file might train them.
    """
    file = paths.held_out / f"{told.slice_id}.jsonl"
    if not told.records or file.is_file():
        return
    copy = paths.run(told.slice_id).held_out_records
    place = f"copy {copy} there" if copy.is_file() else "restore it from a backup"
    raise IntegrityError(
        f"{file}: found no file, expected the records that were held out of {told.name}, which {parent.name} "
        f"has learned; {place}, or put an empty file there to test nothing on them ever again"
    )
