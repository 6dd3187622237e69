"""What is shown of the inbox: what waits, what is queued, and what became of the last files."""

from __future__ import annotations

from typing import Literal

from config import Config, Paths
from intake.inbox import Inbox
from serving.documents import FiledJob, InboxContents, WaitingFile
from serving.job_views import JobViews
from training.filing import folder_for
from training.jobs import Job

SHOWN_FILES = 100
SHOWN_RECENT = 10
SHOWN_REFUSALS = 5
_PLACES: dict[str, Literal["done", "rejected", "failed", "skipped"]] = {
    "done": "done",
    "rejected": "rejected",
    "failed": "failed",
    "skipped": "skipped",
}


class InboxView:
    """Looks into the inbox and the queue without touching either."""

    def __init__(self, paths: Paths, config: Config, jobs: JobViews) -> None:
        self._paths = paths
        self._inbox = Inbox(paths, config.inbox)
        self._jobs = jobs

    def contents(self) -> InboxContents:
        waiting = [
            WaitingFile(name=file.name, size_bytes=file.signature.size_bytes, priority=file.priority)
            for file in self._inbox.dropped()[:SHOWN_FILES]
        ]
        queued = [self._jobs.summary(job) for job in self._jobs.queue()[:SHOWN_FILES]]
        recent = [self._filed(job) for job in self._jobs.filed(SHOWN_RECENT)]
        return InboxContents(waiting=waiting, queued=queued, recent=recent)

    def _filed(self, job: Job) -> FiledJob:
        return FiledJob(
            job_id=job.job_id,
            name=job.name,
            place=_PLACES[folder_for(self._paths, job).name],
            report=self._jobs.report(job, SHOWN_REFUSALS),
        )
