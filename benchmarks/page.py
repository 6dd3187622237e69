"""How fast the page shows a very long run, and how much it loads: ``python -m benchmarks.page``.

A real server and a real browser (Debian's chromium) on a written run of 100,000 steps. Prints one JSON line:
``first_paint_seconds`` until the first text is painted, ``status_to_page_seconds`` from a changed status
document to the changed page (the median of some changes), ``page_kb`` of everything loaded until the page
is quiet but for the charts' library, which browsers keep: as the page reads it, unpacked. ``wire_kb`` is the
same as it came over the wire, packed where the server packs, with headers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from playwright.sync_api import CDPSession, Page, sync_playwright

import durable
from benchmarks.long_run import write_long_run
from config import Paths, load_config
from monitoring.training_status import StatusWriter
from serving.access import access_rules
from serving.monitor_thread import MonitorThread

CHROMIUM = "/usr/bin/chromium"
STEPS = 100_000
CHANGES = 10
QUIET_SECONDS = 4.0
"""Long enough for the charts that are in view and for all that is asked of the API."""
LIBRARY = "/vendor/"


def measure(steps: int) -> dict[str, float]:
    """Write a run of so many steps, look at it in a browser, and return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        writer = write_long_run(paths, steps)
        config = load_config(paths.base, ["serving.monitor_port=0"])
        server = MonitorThread(paths, config, access_rules(config.serving, paths.base, os.environ))
        server.start()
        try:
            return _look(_url(paths), writer)
        finally:
            server.stop()


def _look(url: str, writer: StatusWriter) -> dict[str, float]:
    with sync_playwright() as playwright:
        # Chromium refuses to sandbox itself for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        loaded, received = _count_bytes(page.context.new_cdp_session(page))
        page.goto(url)
        page.locator("#loss[data-look=full]").wait_for()
        time.sleep(QUIET_SECONDS)
        page_bytes, wire_bytes = sum(loaded.values()), sum(received.values())
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        delay = statistics.median(_delay(page, writer, number) for number in range(CHANGES))
        browser.close()
    return {
        "first_paint_seconds": round(paint / 1000, 3),
        "status_to_page_seconds": round(delay, 3),
        "page_kb": round(page_bytes / 1000, 1),
        "wire_kb": round(wire_bytes / 1000, 1),
    }


def _count_bytes(session: CDPSession) -> tuple[dict[str, float], dict[str, float]]:
    """Count by request the bytes the page reads and those over the wire; the charts' library is left out."""
    loaded: dict[str, float] = defaultdict(float)
    received: dict[str, float] = defaultdict(float)
    libraries: set[str] = set()

    def note_request(event: dict[str, object]) -> None:
        request = event["request"]
        assert isinstance(request, dict)
        if LIBRARY in request["url"]:
            libraries.add(str(event["requestId"]))

    def note_bytes(event: dict[str, object]) -> None:
        number, unpacked, packed = str(event["requestId"]), event["dataLength"], event["encodedDataLength"]
        assert isinstance(unpacked, int | float) and isinstance(packed, int | float)
        if number not in libraries:
            loaded[number] += unpacked
            received[number] += packed

    session.on("Network.requestWillBeSent", note_request)
    session.on("Network.dataReceived", note_bytes)
    session.send("Network.enable")
    return loaded, received


def _delay(page: Page, writer: StatusWriter, number: int) -> float:
    """Change the status document and return how long the page took to say so."""
    words = f"Change {number}."
    began = time.perf_counter()
    writer.update(message=words)
    page.locator("#now-message").filter(has_text=words).wait_for()
    return time.perf_counter() - began


def _url(paths: Paths) -> str:
    while not paths.monitor_address.exists():
        time.sleep(0.01)
    return str(durable.read_json(paths.monitor_address)["url"])


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of the written run")
    print(json.dumps(measure(parser.parse_args().steps)))


if __name__ == "__main__":
    main()
