"""Skills that `current` has lost: what suites say of it, beside what they said of the versions before it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from math import comb
from pathlib import Path

from config import Paths
from errors import IntegrityError
from training.suite_records import SuiteRecords, read_records, record_files
from training.versions import VersionStore

logger = logging.getLogger(__name__)

SIGNIFICANT = 0.05
"""Chance of a false alarm, over all suites together."""


class Regressions:
    """Looks at the files of suite runs when one of them has changed, or `current` has moved."""

    def __init__(self, paths: Paths, versions: VersionStore) -> None:
        self._paths = paths
        self._versions = versions
        self._seen: object = None

    def look(self) -> tuple[str, ...] | None:
        """Return a sentence for each suite that `current` answers significantly worse than a version before.

        None when nothing has changed since the last look.
        """
        files = record_files(self._paths.evaluations)
        link = self._paths.current.readlink() if self._paths.current.is_symlink() else None
        seen = link, [(file, file.stat().st_size) for file in files]
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            lineage = list(self._lineage()) if files else []
        except IntegrityError as error:
            logger.warning("%s", error)
            return None
        by_version = [_by_suite(file for file in files if file.parent.name == name) for name in lineage]
        current, *before = by_version or [{}]
        pairs = [
            (records, earlier[asked])
            for asked, records in current.items()
            for earlier in [next((known for known in before if asked in known), None)]
            if earlier is not None
        ]
        return tuple(
            said for now, then in pairs if (said := _loss(now, then, SIGNIFICANT / len(pairs))) is not None
        )

    def _lineage(self) -> Iterator[str]:
        """Yield the name of `current`, then of the version it continues, and so on."""
        version = self._versions.current()
        known = {} if version is None else {each.name: each for each in self._versions.list()}
        while version is not None:
            yield version.name
            version = known.get(version.facts.parent or "")


def _by_suite(files: Iterable[Path]) -> Mapping[str, SuiteRecords]:
    """Return the results of one version by what they hang on besides it, so that two of them compare.

    A damaged file is logged and left out.
    """
    found = {}
    for file in files:
        try:
            records = read_records(file)
        except IntegrityError as error:
            logger.warning("%s", error)
            continue
        found[records.header.asked] = records
    return found


def _loss(now: SuiteRecords, then: SuiteRecords, significant: float) -> str | None:
    """Say what was lost between two runs of one suite, by an exact one-sided test on the items of both."""
    judged = [
        {item: result.correct for item, result in records.results.items() if result.correct is not None}
        for records in (now, then)
    ]
    shared = judged[0].keys() & judged[1].keys()
    lost = sum(judged[1][item] and not judged[0][item] for item in shared)
    gained = sum(judged[0][item] and not judged[1][item] for item in shared)
    differing = lost + gained
    chance = sum(comb(differing, count) for count in range(lost, differing + 1)) / 2**differing
    if chance >= significant:
        return None
    right = [sum(by_item[item] for item in shared) for by_item in judged]
    return (
        f"{now.header.model} answers {right[0]} of {len(shared)} of {now.header.suite} right, "
        f"{then.header.model} answered {right[1]} (p {chance:.2g})"
    )
