"""What a new version is tested on: its file's held-out records, those of earlier files, and the suites."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from config import EvaluationConfig, Paths
from errors import ConfigError, UsageError
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

    Files whose version was held are not among them: nothing that came of them is in the model.
    """
    learned = dict(_learned_files(VersionStore(paths), parent))
    slices = [held_out_slice(paths, job_id, learned[job_id]) for job_id in sorted(learned)]
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


def _learned_files(store: VersionStore, version: Version | None) -> Iterator[tuple[str, str]]:
    """Yield job and file name of all that a version has learned, for as long as the lineage is known.

    A version's report lists the files before it, so that versions that were removed leave no gap.
    """
    known = {found.name: found for found in store.list()}
    while version is not None:
        if version.facts.kind == "training":
            yield version.facts.job_id, version.facts.input_name
        report = read_report(version.folder)
        if report is not None:
            yield from ((part.slice_id, part.name) for part in report.slices if part.kind == "held_out")
        version = known.get(version.facts.parent or "")
