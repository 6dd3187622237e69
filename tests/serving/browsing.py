"""A real browser that looks at the page, and what it says of it."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE_SECONDS

CHROMIUM = Path("/usr/bin/chromium")
PATIENCE_MS = 1000 * PATIENCE_SECONDS
GRAVE = ("serious", "critical")


@contextmanager
def browser() -> Iterator[Any]:
    """Yield Debian's chromium; skip the test without it, and fail where CI promises it."""
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing; sudo make test-tools installs it"
        assert os.environ.get("CI") != "true", reason
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to sandbox itself for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        try:
            yield chromium
        finally:
            chromium.close()


class Visit:
    """One page in a browser of its own, and all that its console complained of."""

    def __init__(self, browser: Any, url: str, **context: Any) -> None:
        self.url = url
        self.complaints: list[str] = []
        self._context = browser.new_context(viewport={"width": 1360, "height": 900}, **context)
        self.page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.goto(url)

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *exception: object) -> None:
        self._context.close()

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).first.inner_text())

    def texts(self, selector: str) -> list[str]:
        """Return the texts of all elements that match, as a reader sees them."""
        return [str(text) for text in self.page.locator(selector).all_inner_texts()]

    def rows(self, panel: str) -> list[list[str]]:
        """Return the cells of a panel's table, row by row; lines within a cell are joined."""
        script = "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.replace(/\\s+/g, ' ')))"
        return list(self.page.locator(f"#{panel} tbody tr").evaluate_all(script))

    def fact(self, name: str) -> str:
        """Return the value beside a name in the head of the page."""
        return str(self.page.locator(f"#now-facts div:has(dt:text-is('{name}')) dd").inner_text())

    def looks(self) -> dict[str, str]:
        """Return the look of every panel by its id."""
        script = "panels => panels.map(panel => [panel.id, panel.dataset.look])"
        return dict(self.page.locator(".panel").evaluate_all(script))

    def await_look(self, panel: str, look: str) -> None:
        self.page.locator(f"#{panel}[data-look='{look}']").wait_for(state="attached")

    def await_charts(self) -> None:
        """Bring every chart that has something to show into view and wait until it is drawn."""
        for panel in self.page.locator(".panel[data-look='full'] .chart").all():
            panel.scroll_into_view_if_needed()
            panel.locator(".main-svg").first.wait_for()
        self.page.evaluate("scrollTo(0, 0)")

    def grave_barriers(self) -> list[str]:
        """Return what axe finds that keeps people out, serious or critical."""
        spec = importlib.util.find_spec("axe_core_python")
        assert spec is not None and spec.origin is not None, "axe-core-python is among the tools of tests"
        script = Path(spec.origin).parent / "axe.min.js"
        self.page.evaluate(script.read_text(encoding="utf-8"))
        result = json.loads(self.page.evaluate("axe.run(document).then(found => JSON.stringify(found))"))
        assert result["passes"], "axe looked at nothing"
        return [
            f"{barrier['id']}: {node['target']} {node['failureSummary']}"
            for barrier in result["violations"]
            if barrier["impact"] in GRAVE
            for node in barrier["nodes"]
        ]

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)
