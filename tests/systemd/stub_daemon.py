"""daemon.py as the units start it, quick, and with the worker that needs no torch."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import daemon  # noqa: E402 - the repository's root is not on the path of a script in tests/

QUICK = ("inbox.settle_seconds=0.2", "inbox.poll_seconds=0.1", "monitoring.status_seconds=0.1")

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path)
    stub = (sys.executable, str(ROOT / "tests" / "stub_worker.py"))
    sys.exit(daemon.run(parser.parse_args().base, overrides=QUICK, worker_command=stub))
