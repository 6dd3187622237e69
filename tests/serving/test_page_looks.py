"""How the page looks when there is nothing, when nothing is known, when it is old, when it cannot be read.

The base folders are made by the code that makes them in life; the server is the daemon's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.long_run import write_long_run
from config import Paths
from monitoring.training_status import StatusWriter
from serving.page_files import WEB
from tests.daemon_base import Base
from tests.serving.browsing import Visit, browser
from tests.serving.served import Client, Served
from tests.waiting import wait_until
from training.jobs import JobStore

SILENT_AFTER = 0.02
"""Status interval of a daemon that is taken for silent after fifteen of them."""
TOKEN = "correct-horse-battery-staple"
LASTING = {"versions", "matrix", "reports", "jobs", "alerts"}
"""Panels of what stays true while the daemon is silent."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


def long_run(paths: Paths, steps: int) -> StatusWriter:
    """Write a run whose daemon is not taken for silent, however slowly the page comes."""
    writer = write_long_run(paths, steps)
    writer.update(status_seconds=3600.0)
    writer.write()
    return writer


def at(client: Client) -> str:
    return f"http://{client.host}:{client.port}"


def test_folder_where_no_daemon_ever_ran_says_what_to_do(chromium: Any, tmp_path: Path) -> None:
    with Served(Paths(tmp_path)) as client, Visit(chromium, at(client)) as visit:
        visit.page.locator("#now-state:text-is('Not started')").wait_for()
        visit.page.locator("#jobs-note").filter(has_text="No file has become a job yet").wait_for()
        wait_until(lambda: set(visit.looks().values()) == {"empty"})
        assert "trainbox run" in visit.text("#now-note")
        assert all(visit.texts(".panel > .note"))
        for scheme in ("light", "dark"):
            visit.page.emulate_media(color_scheme=scheme)
            assert visit.grave_barriers() == []
        # Browsers complain by themselves of what is not there.
        assert [one for one in visit.complaints if "404" not in one] == []


def test_run_of_which_nothing_is_known_shows_no_zeros(chromium: Any, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    long_run(paths, 5)
    (job,) = JobStore(paths).all()
    run = paths.run(job.job_id)
    run.events.unlink()
    for name in ("checkpoint-*/*", "evolution/*"):
        for path in run.folder.glob(name):
            path.unlink()
    writer = StatusWriter(paths.status_file, interval_seconds=3600.0)
    writer.begin_run(job_id=job.job_id, current_file=job.name, state="training", status="training")
    with Served(paths) as client, Visit(chromium, at(client)) as visit:
        for panel in ("loss", "checkpoints", "evolution"):
            visit.await_look(panel, "null")
        for panel in (
            *("loss", "accuracy", "rates", "throughput", "fixed", "example", "evolution", "recent"),
            *("patterns", "checkpoints", "lora", "memory", "gpu", "disk"),
        ):
            visit.await_look(panel, "null")
        assert visit.fact("Step of this file") == "—"
        assert visit.fact("Epoch") == "—"
        assert visit.complaints == []


def test_panels_grow_old_when_the_daemon_falls_silent_and_recover(chromium: Any, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    writer = long_run(paths, 300)
    with Served(paths) as client, Visit(chromium, at(client)) as visit:
        for panel in ("loss", "checkpoints", "evolution", "queue"):
            visit.await_look(panel, "full")
        full = {panel for panel, look in visit.looks().items() if look == "full"}
        writer.update(status_seconds=SILENT_AFTER, message="The last word.")
        visit.await_look("now", "stale")
        for panel in full - LASTING:
            visit.await_look(panel, "stale")
        assert visit.text("#loss-note").startswith("As of ")
        assert visit.text("#now-state") == "Training, when last heard of"
        assert visit.texts("#glance strong")[:1] == ["Silent"]
        writer.update(status_seconds=3600.0, message="Back again.")
        visit.await_look("now", "full")
        for panel in full:
            visit.await_look(panel, "full")


def test_lost_server_is_told_and_found_again(chromium: Any, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    long_run(paths, 300)
    with Served(paths) as client, Visit(chromium, at(client)) as visit:
        visit.await_look("loss", "full")
        port = client.port
    # The visit is over with its server; a second one sees a server go and come.
    with Served(paths, f"serving.monitor_port={port}") as client:
        visit = Visit(chromium, at(client))
        visit.await_look("loss", "full")
    with visit:
        visit.page.locator("#connection[data-link=lost]").wait_for()
        visit.await_look("loss", "stale")
        wait_until(lambda: visit.texts("#glance strong")[:1] == ["No connection"])
        with Served(paths, f"serving.monitor_port={port}"):
            visit.page.locator("#connection[data-link=live]").wait_for()
            visit.await_look("loss", "full")


def test_page_polls_where_something_between_cuts_the_stream(chromium: Any, tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    writer = long_run(paths, 50)
    with Served(paths) as client, Visit(chromium, "about:blank") as visit:
        visit.page.route("**/api/events", lambda route: route.abort())
        visit.page.goto(at(client))
        visit.page.locator("#connection[data-link=polling]").wait_for()
        writer.update(message="News by polling.")
        visit.page.locator("#now-message").filter(has_text="News by polling.").wait_for()


def test_panels_that_cannot_be_read_say_why(chromium: Any, tmp_path: Path) -> None:
    paths, secret = Paths(tmp_path), tmp_path / "token"
    long_run(paths, 50)
    secret.touch(mode=0o600)
    secret.write_text(TOKEN)
    settings = f"serving.token_file={secret}"
    with Served(paths, settings) as client:
        visit = Visit(chromium, f"{at(client)}/?token={TOKEN}")
        visit.await_look("loss", "full")
        port = client.port
    secret.write_text(TOKEN[::-1])
    with Served(paths, settings, f"serving.monitor_port={port}"), visit:
        panels = set(visit.looks()) - {"glance"}
        for panel in panels:
            visit.await_look(panel, "error")
        assert all(text.startswith("Could not be read: ") for text in visit.texts(".panel > .note"))


def test_versions_and_report_cards_show_the_verdicts(chromium: Any, tmp_path: Path) -> None:
    base = Base(tmp_path / "base")
    base.drop("good.jsonl")
    base.drop("odd.jsonl", refuse="no record of it is usable")
    base.run()
    with Served(base.paths) as client, Visit(chromium, at(client)) as visit:
        visit.await_look("versions", "full")
        visit.await_look("reports", "full")
        visit.await_look("jobs", "full")
        versions = client.get("/api/versions").json()
        rows = visit.rows("versions")
        assert [row[0].split()[0] for row in rows] == [one["name"] for one in versions["versions"]][::-1]
        assert rows[0][0] == f"{versions['current']} current"
        assert rows[0][2] == "good.jsonl"
        assert rows[0][6] == "promoted"
        recent = client.get("/api/inbox").json()["recent"]
        assert [row[:2] for row in visit.rows("reports")] == [[one["name"], one["place"]] for one in recent]
        assert {row[1] for row in visit.rows("reports")} == {"done", "rejected"}
        states = {row[0]: row[2] for row in visit.rows("jobs")}
        assert states == {"good.jsonl": "completed", "odd.jsonl": "refused"}


def test_modules_make_no_markup_of_texts_and_ask_nobody_else() -> None:
    for path in [*WEB.glob("*.js"), *WEB.glob("*.html"), *WEB.glob("*.css")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path
        assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", text), path
