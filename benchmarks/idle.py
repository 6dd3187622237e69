"""What the daemon costs while there is nothing to do: ``python -m benchmarks.idle [--json]``.

It runs on an empty base folder with the default configuration. Memory is the resident set, CPU the share of
one core over the measured time; children count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from config import Paths
from monitoring.training_status import read_status

MEMORY_LIMIT_MB = 120.0
CPU_LIMIT_PERCENT = 0.5
START_SECONDS = 30.0
SETTLE_SECONDS = 3.0


def measure(seconds: float) -> dict[str, float]:
    """Run a daemon without work for so many seconds and return its memory and CPU."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(root / "daemon.py"), "--base", folder]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_until_idle(Paths(Path(folder)))
            time.sleep(SETTLE_SECONDS)
            before, started_at = _cpu_seconds(daemon.pid), time.monotonic()
            time.sleep(seconds)
            cpu_seconds, wall_seconds = _cpu_seconds(daemon.pid) - before, time.monotonic() - started_at
            memory_bytes = sum(process.memory_info().rss for process in _family(daemon.pid))
        finally:
            daemon.terminate()
            daemon.wait()
    return {"memory_mb": memory_bytes / 2**20, "cpu_percent": 100 * cpu_seconds / wall_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the idle daemon.")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    options = parser.parse_args()
    result = measure(options.seconds)
    print(f"daemon idle for {options.seconds:.0f} s, monitor off")
    print(f"  memory  {result['memory_mb']:7.1f} MiB  (at most {MEMORY_LIMIT_MB:.0f})")
    print(f"  CPU     {result['cpu_percent']:7.2f} %    (at most {CPU_LIMIT_PERCENT})")
    if options.json:
        print(json.dumps(result))


def _wait_until_idle(paths: Paths) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (reading := read_status(paths)) is None or reading.status.state != "idle":
        if time.monotonic() > deadline:
            raise TimeoutError(f"the daemon was not idle within {START_SECONDS:.0f} s")
        time.sleep(0.1)


def _family(pid: int) -> list[psutil.Process]:
    daemon = psutil.Process(pid)
    return [daemon, *daemon.children(recursive=True)]


def _cpu_seconds(pid: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in _family(pid))


if __name__ == "__main__":
    main()
