"""What a crowd that looks on costs a run: the speed of training steps with listeners, and without.

``python -m benchmarks.monitor`` starts one real daemon with its monitor and a worker whose steps are a fixed
amount of arithmetic, about as heavy on the processor as a small model's. Stretches in which clients of
/api/events come and vanish, a thousand in all, alternate with stretches without any; each pair gives one
ratio of steps a second. The worker keeps one processor to itself, as a run on a GPU machine does; the daemon
and the clients share the others.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from urllib.parse import urlsplit

import durable
from config import Paths
from monitoring.training_status import read_status

ROOT = Path(__file__).parent.parent
CLIENTS = 1000
LEAST_RATIO = 0.99
"""Steps a second while others look on, as a share of those without them."""
PATIENCE_SECONDS = 60.0
WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
os.sched_setaffinity(0, {{{cpu}}})
from tests import stub_worker

def work(seconds):
    if seconds:
        sum(number * number for number in range(250_000))

stub_worker.time.sleep = work
sys.exit(stub_worker.main(sys.argv[1:]))
"""
DAEMON = """
import os, sys, daemon
from pathlib import Path
base, worker, cpu, *settings = sys.argv[1:]
os.sched_setaffinity(0, (os.sched_getaffinity(0) - {int(cpu)}) or {int(cpu)})
sys.exit(daemon.run(Path(base), overrides=settings, worker_command=(sys.executable, worker)))
"""
SETTINGS = (
    *("inbox.settle_seconds=0.2", "disk.min_free_bytes=0", "monitoring.status_seconds=0.5"),
    *("serving.monitor=true", "serving.monitor_port=0"),
)


class Crowd:
    """Clients of the event stream, of which each listens for a moment and is gone."""

    def __init__(self, url: str, at_once: int) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._at_once = at_once
        self._listening: deque[socket.socket] = deque()
        self.came = 0

    def come_and_go(self, seconds: float, clients: int) -> None:
        """Let so many clients come evenly over some seconds; the oldest vanishes whenever one comes."""
        began_at = time.monotonic()
        for number in range(clients):
            self._come()
            if len(self._listening) > self._at_once:
                self._listening.popleft().close()
            time.sleep(max(0.0, began_at + seconds * (number + 1) / clients - time.monotonic()))
        while self._listening:
            self._listening.popleft().close()

    def _come(self) -> None:
        with contextlib.suppress(OSError):  # turned away: there is a limit, and that is right
            client = socket.create_connection((self._host, self._port))
            client.sendall(f"GET /api/events HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode())
            self._listening.append(client)
            self.came += 1


def measure(rounds: int, seconds: float, clients: int, at_once: int) -> dict[str, object]:
    """Return the ratio of each pair of stretches."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        paths.create()
        daemon = _start(paths)
        try:
            return _compare(paths, rounds, seconds, clients, at_once)
        finally:
            daemon.terminate()
            daemon.wait()


def _compare(paths: Paths, rounds: int, seconds: float, clients: int, at_once: int) -> dict[str, object]:
    _wait_for_step(paths, 1)
    crowd = Crowd(durable.read_json(paths.monitor_address)["url"], at_once)
    ratios = []
    for number in range(rounds):
        speeds = {}
        for is_watched in (True, False) if number % 2 else (False, True):
            before, began_at = _events(paths), time.monotonic()
            if is_watched:
                crowd.come_and_go(seconds, clients // rounds)
            else:
                time.sleep(seconds)
            speeds[is_watched] = _steps_since(paths, before) / (time.monotonic() - began_at)
        ratios.append(speeds[True] / speeds[False])
        print(f"  round {number + 1}: {speeds[False]:7.2f} steps/s alone, {speeds[True]:7.2f} watched")
    return {"step_ratio": statistics.median(ratios), "step_ratios": ratios, "clients": crowd.came}


def _start(paths: Paths) -> subprocess.Popen[bytes]:
    cpu = min(os.sched_getaffinity(0))
    worker = paths.base / "worker.py"
    worker.write_text(WORKER.format(root=str(ROOT), cpu=cpu), encoding="utf-8")
    dropped = {"stub": {"steps": 1_000_000, "step_seconds": 1}}
    (paths.inbox / "a.jsonl").write_text(json.dumps(dropped) + "\n", encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(paths.base), str(worker), str(cpu), *SETTINGS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )


def _wait_for_step(paths: Paths, step: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        reading = read_status(paths)
        if reading is not None and (reading.status.batch_step or 0) >= step and _is_served(paths):
            return
        time.sleep(0.1)
    raise SystemExit("the daemon did not begin to train; is its log in logs/daemon.log?")


def _is_served(paths: Paths) -> bool:
    return paths.monitor_address.is_file()


def _events(paths: Paths) -> int:
    """Return how long the events of the run are."""
    (run,) = paths.runs.iterdir()
    return paths.run(run.name).events.stat().st_size


def _steps_since(paths: Paths, offset: int) -> int:
    (run,) = paths.runs.iterdir()
    with open(paths.run(run.name).events, "rb") as file:
        file.seek(offset)
        return file.read().count(b'"event":"step"')


def main() -> int:
    """Measure, print, and exit with 1 when the crowd costs more than one step in a hundred."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="pairs of stretches")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a stretch")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients in all")
    parser.add_argument("--at-once", type=int, default=100, help="clients that listen at the same time")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON as well")
    options = parser.parse_args()
    result = measure(options.rounds, options.seconds, options.clients, options.at_once)
    ratio = result["step_ratio"]
    assert isinstance(ratio, float)
    print(
        f"{result['clients']} clients came and vanished; a step's speed was {ratio:.4f} of that without them"
    )
    print(f"  (at least {LEAST_RATIO})")
    if options.json:
        print(json.dumps(result))
    return 0 if ratio >= LEAST_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
