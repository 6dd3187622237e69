"""How soon and how truly the page tells what happens, whatever its reader looks at.

The status is written by the daemon's own writer; the server is the daemon's own, on files of a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import durable
from benchmarks.long_run import write_long_run
from config import Paths
from monitoring.alert_log import AlertLog
from monitoring.events import AlertEvent
from monitoring.training_status import QueueStatus, StatusWriter
from tests.serving.browsing import Visit, browser
from tests.serving.served import Client, Served
from tests.serving.test_version_views import publish
from tests.training.ledger.run_folders import Folder
from tests.waiting import wait_until

IMPATIENCE_MS = 1000
"""Page time within which news are there; without news each source is asked each 15 s at the earliest."""

SILENT_AFTER = 0.02
"""Status interval of a daemon that is taken for silent after fifteen of them."""
PAST = AlertEvent(
    *(), kind="resolved", severity="warning", category="low_disk", message="the disk was full", details={},
    recommendation="Make room.",
)  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def talkative(paths: Paths, **fields: Any) -> StatusWriter:
    """Return the writer of a daemon that is not taken for silent, however slowly the page comes."""
    writer = StatusWriter(paths.status_file, interval_seconds=3600.0, **fields)
    writer.write()
    return writer


def at(client: Client) -> str:
    return f"http://{client.host}:{client.port}"


def hear(visit: Visit, message: str) -> None:
    """Wait until the page has heard a status, whether it has drawn it or not."""
    known = "import('/web/store.js').then(({ store }) => store.status?.message)"
    wait_until(lambda: visit.page.evaluate(known) == message)


def test_page_of_a_past_run_tells_at_once_of_new_jobs_versions_and_files(
    chromium: Any, folder: Folder
) -> None:
    past = folder.job(1, state="finished", outcome="completed", version=publish(folder.paths, 1))
    job = folder.job(2, state="running", started=True)
    writer = talkative(folder.paths, job_id=job.job_id, state="training", status="training")
    with Served(folder.paths) as client, Visit(chromium, "about:blank") as visit:
        visit.page.clock.install()
        visit.page.goto(at(client))
        for panel in ("jobs", "versions", "queue"):
            visit.await_look(panel, "full")
        visit.page.select_option("#run-choice", past.job_id)
        visit.page.locator("#jobs tr.marked").filter(has_text="1.jsonl").wait_for()
        writer.update(message="nothing new")
        hear(visit, "nothing new")
        # Slow answers are asked for less often, but not for longer than this.
        visit.page.clock.pause_at(visit.page.evaluate("Date.now()") / 1000 + 10.5)
        publish(folder.paths, 2)
        folder.job(3)
        writer.update(message="v0002: hold, worse", batch_queue_size=1, queue=QueueStatus(normal=1))
        hear(visit, "v0002: hold, worse")
        visit.page.clock.run_for(IMPATIENCE_MS)

        def is_told() -> bool:
            visit.page.clock.run_for(1)  # for what was answered meanwhile and waits to be drawn
            shown = (len(visit.rows("jobs")), len(visit.rows("versions")), len(visit.texts("#queue .name")))
            return shown == (3, 2, 2)

        wait_until(is_told)


def test_nothing_is_said_to_be_well_before_it_is_known_or_once_it_is_not_known_any_more(
    chromium: Any, folder: Folder
) -> None:
    writer = talkative(folder.paths)
    held: list[Any] = []
    with Served(folder.paths) as client:
        visit = Visit(chromium, "about:blank")
        visit.page.route("**/api/alerts", lambda route: held.append(route))
        visit.page.goto(at(client))
        visit.page.locator("#queue-note").filter(has_text="Nothing waits.").wait_for()
        wait_until(lambda: visit.text("#alerts-note") == "Reading the alerts." and held)
        held[0].continue_()
        visit.page.unroute("**/api/alerts")
        note = visit.page.locator("#alerts-note")
        note.filter(has_text="Nothing is wrong, and no earlier alert is kept.").wait_for()

        writer.update(status_seconds=SILENT_AFTER, message="The last word.")
        for panel in ("alerts", "queue"):
            visit.await_look(panel, "stale")
            assert visit.text(f"#{panel}-note").startswith("Not known since ")
        writer.update(status_seconds=3600.0, message="Back again.")
        for panel in ("alerts", "queue"):
            visit.await_look(panel, "empty")
        AlertLog(folder.paths.alerts).keep(PAST)
        visit.page.reload()
        note.filter(has_text="Nothing is wrong now.").wait_for()
        assert visit.page.locator("#alerts-history").text_content().count(PAST.message[1:]) == 1
    with visit:
        visit.page.locator("#connection[data-link=lost]").wait_for()
        for panel in ("alerts", "queue"):
            visit.await_look(panel, "stale")
            assert visit.text(f"#{panel}-note").startswith("Not known since ")


def test_a_stopped_daemon_watches_nothing_and_the_page_says_so(chromium: Any, folder: Folder) -> None:
    talkative(folder.paths, state="stopped")
    with Served(folder.paths) as client, Visit(chromium, at(client)) as visit:
        visit.page.locator("#alerts-note").filter(has_text="when the daemon stopped").wait_for()
        assert visit.complaints == []


def test_charts_that_cannot_be_drawn_say_so_and_are_tried_again(chromium: Any, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    write_long_run(paths, 50).update(status_seconds=3600.0, message="At work.")
    with Served(paths) as client, Visit(chromium, "about:blank") as visit:
        visit.page.clock.install()
        visit.page.route("**/vendor/plotly.min.js", lambda route: route.abort())
        visit.page.goto(at(client))
        text = visit.page.locator("#loss-text").filter(has_text="Loss went from")
        text.filter(has_text="/vendor/plotly.min.js could not be loaded").wait_for()
        visit.page.unroute("**/vendor/plotly.min.js")
        visit.page.clock.fast_forward(6000)
        visit.page.locator("#loss-chart .main-svg").first.wait_for()
        visit.page.locator("#loss-text").filter(has_not_text="could not be loaded").wait_for()
        assert visit.page.locator("style").count() == 0


def test_the_moment_of_the_heartbeat_is_that_of_the_newest_one(chromium: Any, folder: Folder) -> None:
    writer = talkative(folder.paths)
    with Served(folder.paths) as client, Visit(chromium, at(client)) as visit:
        for second in ("05", "06"):
            moment = f"2026-01-02T03:04:{second}Z"
            document = writer.status.model_dump(mode="json") | {"heartbeat_at": moment}
            durable.write_json(folder.paths.status_file, document)
            visit.page.locator(f"#now-heartbeat[title$=':{second}']").wait_for()
