"""The stub worker with the guard that the real one has."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from training.guard import start_guard

if __name__ == "__main__":
    start_guard()
    runpy.run_path(str(Path(__file__).with_name("stub_worker.py")), run_name="__main__")
