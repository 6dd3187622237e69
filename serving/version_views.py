"""What is shown of versions; a version never changes, so its manifest is read once."""

from __future__ import annotations

import logging
import threading

from config import Paths
from errors import IntegrityError
from serving.documents import HeldOutLosses, Versions, VersionSummary
from training.version_facts import VersionDecision, VersionFacts
from training.versions import VERSION_NAME, read_version, version_names

logger = logging.getLogger(__name__)


class VersionIndex:
    """The facts of every version that is there."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._lock = threading.Lock()
        self._summaries: dict[str, VersionSummary] = {}
        self._damaged: set[str] = set()

    def has(self, name: str | None) -> bool:
        return name is not None and (self._paths.versions / name).is_dir()

    def decision(self, name: str | None) -> VersionDecision | None:
        """Return whether a version was promoted or held; None when it is no longer there."""
        if name is None or VERSION_NAME.fullmatch(name) is None or not self.has(name):
            return None
        summary = self._summary(name)
        return None if summary is None else summary.decision

    def current(self) -> str | None:
        """Return the name of the current version; None when none was promoted yet."""
        try:
            return self._paths.current.readlink().name
        except FileNotFoundError:
            return None

    def summaries(self) -> list[VersionSummary]:
        """Return every version, oldest first, the current one marked."""
        current = self.current()
        names = version_names(self._paths.versions)
        with self._lock:
            for gone in self._summaries.keys() - set(names):
                del self._summaries[gone]
        found = (self._summary(name) for name in names)
        return [
            summary.model_copy(update={"is_current": summary.name == current})
            for summary in found
            if summary is not None
        ]

    def describe(self) -> Versions:
        """Return all versions and the matrix of what each can do."""
        return Versions(current=self.current(), versions=self.summaries(), matrix=None)

    def _summary(self, name: str) -> VersionSummary | None:
        with self._lock:
            known = self._summaries.get(name)
        if known is not None:
            return known
        try:
            summary = _summarize(read_version(self._paths.versions / name).facts)
        except (OSError, IntegrityError) as error:
            if name not in self._damaged:
                self._damaged.add(name)
                logger.error("Left out version %s: %s", name, error)
            return None
        with self._lock:
            self._summaries[name] = summary
        return summary


def _summarize(facts: VersionFacts) -> VersionSummary:
    held_out = facts.held_out
    return VersionSummary(
        name=facts.version,
        parent=facts.parent,
        kind=facts.kind,
        created_at=facts.created_at,
        job_id=facts.job_id,
        input_name=facts.input_name,
        steps=facts.steps,
        train_loss=facts.train_loss,
        held_out=HeldOutLosses(
            records=held_out.records,
            before_loss=held_out.before_loss,
            after_loss=held_out.after_loss,
            interval=held_out.interval,
        ),
        decision=facts.decision,
        decision_reason=facts.decision_reason,
        is_current=False,
    )
