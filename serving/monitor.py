"""The monitor: the page, the status and the training API, views of files and nothing else.

No route changes anything; control stays with the control files and the command line. It knows the daemon
only by the files it writes, so what is shown is what lies on the disk.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.to_thread
from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response

from config import Config, Paths
from errors import IntegrityError
from monitoring.training_status import Reading, TrainingStatus, read_status
from serving.access import Access, AccessRules
from serving.alert_history import AlertHistory
from serving.api_page import api_page
from serving.documents import (
    Alerts,
    Checkpoints,
    Evolution,
    Health,
    InboxContents,
    JobDetail,
    JobMetrics,
    Jobs,
    Problem,
    Versions,
)
from serving.inbox_view import InboxView
from serving.job_views import JobViews
from serving.page_files import add_page_files
from serving.prometheus import CONTENT_TYPE, MetricsView
from serving.run_views import RunViews
from serving.stream import EventStreamResponse, StatusStream
from serving.thinning import LEAST_POINTS
from serving.version_views import VersionIndex
from training.jobs import JOB_ID, Job

THREADS = 4
"""Requests that read files at the same time; more wait, so that a crowd never costs much memory."""
MAX_POINTS = 5000
PACKED_FROM_BYTES = 1000
"""Smaller answers gain nothing by being packed."""
PACKING = 5
"""Level of gzip: the daemon has better things to do than to win the last bytes."""
_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem}}
JobId = Annotated[str, Path(pattern=f"^{JOB_ID.pattern}$", max_length=40, examples=["000042-3f9c2a10"])]


def create_app(paths: Paths, config: Config, rules: AccessRules, stream: StatusStream) -> Access:
    """Return the application behind its rules; its routes may be called from several threads."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        yield

    app = FastAPI(
        title="trainbox monitor",
        description="What the daemon does, what it learned, and which version to use. Views only.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={401: {"model": Problem}},
    )
    # It leaves streams of events alone, and what is packed already.
    app.add_middleware(GZipMiddleware, minimum_size=PACKED_FROM_BYTES, compresslevel=PACKING)
    app.add_exception_handler(IntegrityError, _tell_damage)
    app.add_exception_handler(Exception, _tell_surprise)
    versions = VersionIndex(paths)
    jobs = JobViews(paths, versions)
    _add_status(app, paths, stream)
    _add_jobs(app, jobs, RunViews(paths, config))
    _add_overviews(app, paths, versions, InboxView(paths, config, jobs))
    _add_metrics(app, MetricsView(paths, jobs, versions))
    add_page_files(app)

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return api_page(app.openapi())

    return Access(app, rules)


def _add_status(app: FastAPI, paths: Paths, stream: StatusStream) -> None:
    @app.get(
        "/status/training_status.json",
        tags=["status"],
        responses={200: {"model": TrainingStatus}, **_MISSING},
        response_class=Response,
    )
    def training_status() -> Response:
        """Return the status document as the daemon wrote it."""
        try:
            return Response(paths.status_file.read_bytes(), media_type="application/json")
        except FileNotFoundError:
            raise HTTPException(404, "no daemon has written a status here yet") from None

    @app.get(
        "/api/events",
        tags=["status"],
        response_class=Response,
        responses={
            200: {
                "content": {"text/event-stream": {}},
                "description": "`event: status` with the status document, `event: ping` in between",
            }
        },
    )
    async def events() -> EventStreamResponse:
        """Send the status document now and whenever it changes (server-sent events)."""
        return EventStreamResponse(stream)

    @app.get("/health", tags=["status"], responses={503: {"model": Health}})
    def health(response: Response) -> Health:
        """Tell whether the daemon is well; 503 when it is not."""
        found = _health(read_status(paths))
        response.status_code = 200 if found.status == "ok" else 503
        return found


def _add_jobs(app: FastAPI, jobs: JobViews, runs: RunViews) -> None:
    def known(job_id: str) -> Job:
        job = jobs.job(job_id)
        if job is None:
            raise HTTPException(404, f"no job {job_id}")
        return job

    @app.get("/api/training/jobs", tags=["jobs"])
    def list_jobs(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> Jobs:
        """List the newest jobs, newest first."""
        return Jobs(jobs=jobs.newest(limit))

    @app.get("/api/training/jobs/{job_id}", tags=["jobs"], responses=_MISSING)
    def job(job_id: JobId) -> JobDetail:
        """Return one job with the report card of its file."""
        return jobs.detail(known(job_id))

    @app.get("/api/training/jobs/{job_id}/metrics", tags=["jobs"], responses=_MISSING)
    def metrics(
        job_id: JobId, max_points: Annotated[int, Query(ge=LEAST_POINTS, le=MAX_POINTS)] = 1000
    ) -> JobMetrics:
        """Return the curves of a run, thinned out to `max_points` rows so that lows and highs stay."""
        return runs.metrics(known(job_id).job_id, max_points)

    @app.get("/api/training/jobs/{job_id}/evolution", tags=["jobs"], responses=_MISSING)
    def evolution(job_id: JobId, max_answers: Annotated[int, Query(ge=2, le=200)] = 30) -> Evolution:
        """Return how the answers to the same held-out prompts changed."""
        return runs.evolution(known(job_id).job_id, max_answers)

    @app.get("/api/training/checkpoints/{job_id}", tags=["jobs"], responses=_MISSING)
    def checkpoints(job_id: JobId) -> Checkpoints:
        """List the checkpoints of a run with their scores, newest step first."""
        return runs.checkpoints(known(job_id).job_id)


def _add_overviews(app: FastAPI, paths: Paths, versions: VersionIndex, inbox: InboxView) -> None:
    history = AlertHistory(paths)

    @app.get("/api/versions", tags=["overview"])
    def list_versions() -> Versions:
        """List every version, and what each of them can do."""
        return versions.describe()

    @app.get("/api/inbox", tags=["overview"])
    def inbox_contents() -> InboxContents:
        """Tell what waits, what is queued, and what became of the last files."""
        return inbox.contents()

    @app.get("/api/alerts", tags=["overview"])
    def alerts() -> Alerts:
        """Tell what alarms now, and what did before: in the newest runs, and while no job ran."""
        reading = read_status(paths)
        active = [] if reading is None else list(reading.status.active_alerts)
        return Alerts(active=active, history=history.newest())


def _add_metrics(app: FastAPI, view: MetricsView) -> None:
    @app.get(
        "/metrics",
        tags=["status"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}, "description": "Prometheus' text format"}},
    )
    def prometheus() -> Response:
        """Return the numbers for Prometheus; what is not known is left out."""
        return Response(view.render(), headers={"content-type": CONTENT_TYPE})


def _tell_damage(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=500)


def _tell_surprise(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "an error nobody foresaw; it is in the daemon's log"}, status_code=500)


def _health(reading: Reading | None) -> Health:
    if reading is None:
        return Health(status="unknown", state=None, pid=None, heartbeat_at=None, heartbeat_age_seconds=None)
    status = reading.status
    beat = status.heartbeat_monotonic_seconds
    is_well = reading.is_running and not reading.is_stale
    return Health(
        status="ok" if is_well else "stale" if reading.is_stale else "stopped",
        state=status.state,
        pid=status.pid,
        heartbeat_at=status.heartbeat_at,
        heartbeat_age_seconds=None if beat is None else max(0.0, time.monotonic() - beat),
    )
