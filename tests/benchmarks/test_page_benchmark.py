"""The benchmark of the page, in a small shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.browsing import CHROMIUM

ROOT = Path(__file__).parent.parent.parent


def test_page_benchmark_prints_its_figures_as_one_line() -> None:
    if not CHROMIUM.exists():
        assert os.environ.get("CI") != "true", f"{CHROMIUM} is missing"
        pytest.skip(f"{CHROMIUM} is missing; sudo make test-tools installs it")
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.page", "--steps", "2000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = result.stdout.splitlines()
    figures = json.loads(line)
    assert list(figures) == ["first_paint_seconds", "status_to_page_seconds", "page_kb", "wire_kb"]
    assert all(figure > 0 for figure in figures.values())
    # How much is loaded does not depend on how fast the machine is.
    assert figures["wire_kb"] < figures["page_kb"] <= 300
