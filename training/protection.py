"""Which versions must stay, and the sentence that says why and what to do instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import durable
from config import Paths
from training.jobs import JobStore
from training.versions import Version, VersionStore

LAST_VERSIONS = 3
"""So many of the newest versions always stay."""
YOUNG = timedelta(hours=24)
"""A version of this age stays unless another verified copy of it exists."""


class Protection:
    """The rules of removal, looked up once; anything that changes versions needs a new one."""

    def __init__(
        self,
        paths: Paths,
        store: VersionStore,
        has_copy: Callable[[Version], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`has_copy` tells whether a verified copy of a version lies elsewhere."""
        self._versions: Sequence[Version] = store.list()
        self._current = store.current()
        self._has_copy = has_copy
        self._now = now
        self._begun: dict[str, str] = {}
        """By version: the unfinished job that began with it."""
        self._unfiled: set[str] = set()
        jobs = JobStore(paths)
        for job in jobs.queue():
            self._unfiled.add(job.job_id)
            start = jobs.run(job).start
            parent = durable.read_json(start)["parent"] if start.exists() else None
            if parent is not None:
                self._begun[parent] = job.job_id

    @property
    def best(self) -> Version | None:
        """The promoted version with the lowest held-out loss after its training."""
        scored = [
            (version.facts.held_out.after_loss, -version.number, version)
            for version in self._versions
            if version.facts.decision == "promote" and version.facts.held_out.after_loss is not None
        ]
        return min(scored, default=(None, None, None))[2]

    def reason_to_keep(self, version: Version) -> str | None:
        """Return the first rule that keeps `version`, with what to do; None when it may go."""
        name = version.name
        if self._current is not None and name == self._current.name:
            return f"{name} is current; make another one current first: trainbox rollback"
        if name in [newest.name for newest in self._versions[-LAST_VERSIONS:]]:
            return f"{name} is one of the last {LAST_VERSIONS} versions, which stay; wait for newer ones"
        if self.best is not None and name == self.best.name:
            return f"{name} has the lowest held-out loss of all promoted versions, and the best one stays"
        return self._reference_to(version) or self.youth_of(version)

    def _reference_to(self, version: Version) -> str | None:
        name = version.name
        children = [child for child in self._versions if child.facts.parent == name]
        for child in children:
            if child.facts.kind == "consolidation":
                return (
                    f"{name} was merged into the full model {child.name} stands on; delete {child.name} first"
                )
        if children:
            return f"{children[0].name} continues {name}; delete {children[0].name} first"
        if name in self._begun:
            job = self._begun[name]
            return f"job {job} began with {name} and is not finished; let it finish, or: trainbox skip"
        if version.facts.job_id in self._unfiled:
            return f"job {version.facts.job_id}, which made {name}, is not filed away yet; run the daemon"
        return None

    def youth_of(self, version: Version) -> str | None:
        """Return why a version made within a day stays; None when it is older or lies elsewhere too."""
        if self._now() - version.facts.created_at >= YOUNG or self._has_copy(version):
            return None
        return (
            f"{version.name} is less than a day old and no other verified copy of it exists; set backup.root "
            f"and run: trainbox versions backup {version.name}"
        )
