"""The page while its daemon dies and comes back: what was known stays, is called old, and grows new again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.monitor_thread import listen
from tests.daemon_base import Base
from tests.serving.browsing import Visit, browser
from tests.waiting import wait_until

ADVICE = "Make room"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    base = Base(tmp_path)
    yield base
    base.close()


def free_port() -> int:
    with listen("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])


def test_alert_of_a_killed_daemon_stays_with_its_advice_until_the_next_daemon_takes_it_back(
    base: Base,
) -> None:
    port = free_port()
    settings = ("serving.monitor=true", f"serving.monitor_port={port}")
    daemon = base.start(*settings, f"disk.min_free_bytes={2**60}")
    with browser() as chromium, Visit(chromium, "about:blank") as visit:
        _open_when_served(visit, port)
        page = visit.page
        alert = page.locator("#alerts-active [data-category=low_disk]")
        alert.filter(has_text=ADVICE).wait_for()
        page.locator("#glance dd").filter(has_text=ADVICE).wait_for()
        page.evaluate("globalThis.isSameDocument = true")

        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        page.locator("#connection[data-link=lost]").wait_for()
        for panel in ("now", "alerts", "memory", "disk"):
            visit.await_look(panel, "stale")
        assert visit.text("#disk-note").startswith("As of ")
        assert visit.texts("#glance strong")[:1] == ["No connection"]
        assert ADVICE in alert.inner_text()

        base.start(*settings)
        page.locator("#connection[data-link=live]").wait_for()
        alert.wait_for(state="detached")
        for panel in ("now", "memory", "disk"):
            visit.await_look(panel, "full")
        page.locator("#glance strong:text-is('Yes')").wait_for()
        assert page.evaluate("globalThis.isSameDocument") is True


def _open_when_served(visit: Visit, port: int) -> None:
    """Open the page of a daemon that is still starting."""
    from playwright.sync_api import Error

    def opens() -> bool:
        try:
            visit.page.goto(f"http://127.0.0.1:{port}")
        except Error:
            return False
        return True

    wait_until(opens)
