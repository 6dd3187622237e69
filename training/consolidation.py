"""Consolidation: what a lineage of adapters learned becomes the base of what is learned next.

Back up, merge, compare, publish the full model, then publish a version that stands on it and make it
current. Until that last step the version that was current stays so and can be trained on; killed at any
point, the same command goes on. While it works it holds the worker's lock, so that no run begins with
what is about to be followed; a run that has begun is let finish first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import filelock

import durable
from config import Config, Paths
from errors import EnvironmentNotReady, IntegrityError, UsageError
from training.backups import Backups, housekeeping
from training.base_model import base_sha256
from training.full_models import FullModelFacts, StoredPrecision, base_under, read_full_model
from training.jobs import JobStore
from training.merging import Merge, load_plainly, write_new_adapter
from training.model import set_threads
from training.version_facts import HeldOutResult, RecordCounts, VersionFacts
from training.versions import Version, VersionStore

logger = logging.getLogger(__name__)

LOCK_SECONDS = 2.0


class Consolidation:
    """Merges the current version of a base folder."""

    def __init__(self, paths: Paths, config: Config, precision: StoredPrecision = "float32") -> None:
        self._paths = paths
        self._config = config
        self._precision: StoredPrecision = precision
        self._store = VersionStore(paths)

    def carry_out(self) -> Version:
        """Return the version that stands on the merged model and is current; safe to repeat.

        When nothing was learned since the last consolidation, that is the current version itself. Raises
        UsageError while a job is on its way, IntegrityError when the merged model answers otherwise.
        """
        with housekeeping(self._paths), self._no_run():
            source = self._store.get("current")
            if source.facts.kind == "consolidation":
                return source
            base = base_under(self._paths, self._config.model, source.facts)
            earlier = self._store.version_of_job(_job_of(source))
            if earlier is not None:
                base_under(self._paths, self._config.model, earlier.facts)
                return self._store.promote(earlier, earlier.facts.decision_reason)
            set_threads(self._config.train)
            Backups(self._paths, self._store, self._config.backup).back_up(source)
            model = self._full_model(source) or self._merge(source, base)
            return self._switch(source, model)

    @contextlib.contextmanager
    def _no_run(self) -> Iterator[None]:
        """Keep runs from beginning; UsageError when one has begun and is not finished."""
        lock = filelock.FileLock(self._paths.worker_lock, timeout=LOCK_SECONDS, fallback_to_soft=False)
        try:
            with lock:
                self._refuse_begun_runs()
                yield
        except filelock.Timeout as error:
            raise EnvironmentNotReady("a job is being trained; try again when it is done") from error

    def _refuse_begun_runs(self) -> None:
        jobs = JobStore(self._paths)
        for job in jobs.queue():
            if jobs.run(job).start.exists() and self._store.version_of_job(job.job_id) is None:
                raise UsageError(
                    f"job {job.job_id} ({job.name}) has begun on what would be merged; "
                    "let it finish, or give it up with: trainbox skip"
                )

    def _full_model(self, source: Version) -> Path | None:
        """Return the full model that an interrupted consolidation has published already."""
        folder = self._paths.consolidated / source.name
        if not folder.exists():
            return None
        if durable.is_sealed(folder):
            facts = read_full_model(folder)
            if (facts.source_manifest_sha256, facts.precision) == (source.manifest_sha256, self._precision):
                logger.info("Found %s merged already", source.name)
                return folder
        logger.warning("Removed %s: it is damaged, or was merged from something else", folder)
        durable.remove_tree(folder)
        return None

    def _merge(self, source: Version, base: Path) -> Path:
        """Merge, compare what was written with what the version answers, and publish."""
        folder = self._paths.consolidated / source.name
        staging = folder.with_name(f".{folder.name}{durable.PARTIAL_SUFFIX}")
        durable.make_folder(staging)
        merge = Merge(self._paths, self._config, source, base)
        merge.save(staging, self._precision)
        likeness = merge.likeness(load_plainly(staging), self._precision)
        logger.info("Merged %s: %s", source.name, likeness)
        if not likeness.is_close:
            durable.remove_tree(staging)
            raise IntegrityError(f"{source.name} merged answers otherwise: {likeness}; nothing was changed")
        before = None if source.facts.consolidated is None else read_full_model(base)
        facts = FullModelFacts(
            name=folder.name,
            source=source.name,
            source_manifest_sha256=source.manifest_sha256,
            lineage=tuple(self._lineage(source)),
            base_model=source.facts.base_model,
            base_sha256=source.facts.base_sha256,
            origin=self._config.model.base if before is None else before.origin,
            origin_sha256=source.facts.base_sha256 if before is None else before.origin_sha256,
            precision=self._precision,
            likeness=likeness,
        )
        durable.seal_folder(staging, facts.model_dump(mode="json"))
        durable.publish_folder(staging, folder)
        return folder

    def _lineage(self, version: Version) -> Iterator[str]:
        known = {each.name: each.facts.parent for each in self._store.list()}
        name: str | None = version.name
        while name is not None:
            yield name
            name = known.get(name)

    def _switch(self, source: Version, folder: Path) -> Version:
        """Publish a version that stands on the full model, with a new adapter, and make it current."""
        staging = self._store.stage()
        write_new_adapter(folder, staging, self._config.train)
        likeness = read_full_model(folder).likeness
        facts = VersionFacts(
            kind="consolidation",
            parent=source.name,
            consolidated=folder.name,
            job_id=_job_of(source),
            input_name=f"{source.name} merged",
            input_sha256=source.manifest_sha256,
            base_model=str(folder),
            base_sha256=base_sha256(folder),
            created_at=datetime.now(UTC),
            config=self._config.model_dump(mode="json"),
            records=RecordCounts(train=0, held_out=0),
            steps=0,
            epochs=0,
            tokens=0,
            train_loss=None,
            held_out=HeldOutResult(records=0),
            decision="promote",
            decision_reason=f"{source.name} merged into a full model; {likeness}",
        )
        return self._store.succeed(staging, facts, source)


def _job_of(source: Version) -> str:
    """Return what stands for a job in the version made from `source`: a source is consolidated once."""
    return f"consolidation-{source.name}"
