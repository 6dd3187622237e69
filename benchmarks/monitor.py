"""What a crowd that looks on costs a run: the speed of training steps with listeners, and without.

    python -m benchmarks.monitor [--json] [--rounds 70] [--seconds 1] [--clients 1000]

A real daemon with its monitor trains by `benchmarks.busy_worker`, which has one processor to itself; the
daemon and the clients share the others. Two things are measured. What clients of /api/events cost the daemon
is counted in its processor time, which says more on a busy machine than a clock does. What they cost a step
is compared between short stretches, in the order alone, watched, watched, alone: neighbours of which one is
watched make a pair; neighbours of which neither is make a null pair, and these show how far apart two are for
no reason at all. The verdict is that of the 95 % interval of the mean ratio (bootstrap over pairs).
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

import durable
from benchmarks.busy_worker import Step, read_journal
from config import Paths
from evaluation.comparison import paired_bootstrap
from monitoring.training_status import read_status

ROOT = Path(__file__).parent.parent
LEAST_RATIO = 0.99
"""Steps a second while others look on, as a share of those without them."""
LISTENERS, LISTEN_SECONDS = 50, 10.0
"""How many listen, and for how long, to tell what listening costs."""
PATIENCE_SECONDS = 120.0
DAEMON = """
import os, sys, daemon
from pathlib import Path
base, processor, *settings = sys.argv[1:]
os.sched_setaffinity(0, (os.sched_getaffinity(0) - {int(processor)}) or {int(processor)})
worker = (sys.executable, "-P", "-m", "benchmarks.busy_worker", processor)
sys.exit(daemon.run(Path(base), overrides=settings, worker_command=worker))
"""
SETTINGS = (
    "inbox.settle_seconds=0.2",
    "disk.min_free_bytes=0",
    "serving.monitor=true",
    "serving.monitor_port=0",
)


class Crowd:
    """Clients of the event stream, of which each listens for a moment and is gone."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 0
        self.came = 0

    def come(self) -> socket.socket:
        """Return a client that has asked and reads nothing yet."""
        client = socket.create_connection((self._host, self._port), timeout=PATIENCE_SECONDS)
        client.sendall(f"GET /api/events HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n\r\n".encode())
        self.came += 1
        return client

    def come_and_go(self, seconds: float, clients: int) -> None:
        """Let so many clients come evenly over some seconds, and vanish all at once."""
        began_at = time.monotonic()
        with contextlib.ExitStack() as listening:
            for number in range(clients):
                listening.enter_context(self.come())
                _sleep_until(began_at + seconds * (number + 1) / clients)

    def read(self, client: socket.socket) -> None:
        """Take what is sent until a message is whole."""
        received = b""
        while not received.endswith(b"}\n\n\r\n"):
            chunk = client.recv(1 << 20)
            if not chunk:
                raise SystemExit("the monitor closed a stream; is its log in logs/daemon.log?")
            received += chunk


@dataclass(frozen=True)
class Cost:
    """Processor time of the daemon, beyond what it needs when nobody looks on."""

    status_kb: float
    seconds_per_thousand_clients: float
    """Each comes, takes the first message, and vanishes."""
    milliseconds_per_listener_second: float


@dataclass(frozen=True)
class Stretch:
    """Some seconds of the run, in which clients came and vanished or did not."""

    is_watched: bool
    began_at: float
    ended_at: float


@dataclass(frozen=True)
class Ratio:
    """Mean ratio of the steps a second of pairs, with its 95 % interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        found = paired_bootstrap([1.0] * len(ratios), ratios)
        low, high = found.interval
        return cls(1 + found.mean, 1 + low, 1 + high, len(ratios))

    @property
    def verdict(self) -> str:
        if self.low >= LEAST_RATIO:
            return "met"
        return "not met" if self.high < LEAST_RATIO else "not decided"

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f} to {self.high:.4f}, {self.pairs} pairs)"


@dataclass(frozen=True)
class Result:
    """All that is measured."""

    cost: Cost
    clients: int
    ratio: Ratio
    null_ratio: Ratio
    step_milliseconds: float
    telling_milliseconds: float
    """Median time a step waited while the daemon was told of it, in watched stretches."""
    longest_telling_milliseconds: float


def measure(rounds: int, seconds: float, clients: int) -> Result:
    """Measure both, in one run of a real daemon."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Paths(Path(folder))
        with _training(paths) as daemon:
            crowd = Crowd(durable.read_json(paths.monitor_address)["url"])
            cost = _cost(daemon, crowd, paths, clients)
            before = crowd.came
            stretches = list(_take_turns(crowd, rounds, seconds, clients))
            came = crowd.came - before
        (run,) = paths.runs.iterdir()
        return _compare(cost, came, stretches, read_journal(run))


@contextlib.contextmanager
def _training(paths: Paths) -> Iterator[psutil.Process]:
    """Have a daemon train inside; the journal of the run is there afterwards."""
    paths.create()
    (paths.inbox / "a.jsonl").write_text('{"text": "no worker reads this"}\n', encoding="utf-8")
    processor = str(min(os.sched_getaffinity(0)))
    daemon = subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(paths.base), processor, *SETTINGS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_first_step(paths)
        yield psutil.Process(daemon.pid)
    finally:
        daemon.terminate()
        daemon.wait()


def _wait_for_first_step(paths: Paths) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        reading = read_status(paths)
        if reading is not None and reading.status.batch_step and paths.monitor_address.is_file():
            return
        time.sleep(0.1)
    raise SystemExit("the daemon did not begin to train; run it by hand to see why")


def _cost(daemon: psutil.Process, crowd: Crowd, paths: Paths, clients: int) -> Cost:
    began_at, idle = time.monotonic(), _processor_seconds(daemon)
    time.sleep(LISTEN_SECONDS)
    idle = (_processor_seconds(daemon) - idle) / (time.monotonic() - began_at)

    began_at, coming = time.monotonic(), _processor_seconds(daemon)
    for _ in range(clients):
        with crowd.come() as client:
            crowd.read(client)
    coming = _processor_seconds(daemon) - coming - idle * (time.monotonic() - began_at)

    with contextlib.ExitStack() as clients_that_stay:
        for _ in range(LISTENERS):
            crowd.read(clients_that_stay.enter_context(crowd.come()))
        began_at, listening = time.monotonic(), _processor_seconds(daemon)
        time.sleep(LISTEN_SECONDS)
        seconds = time.monotonic() - began_at
        listening = _processor_seconds(daemon) - listening - idle * seconds
    return Cost(
        status_kb=paths.status_file.stat().st_size / 1000,
        seconds_per_thousand_clients=1000 * coming / clients,
        milliseconds_per_listener_second=1000 * listening / (LISTENERS * seconds),
    )


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _take_turns(crowd: Crowd, rounds: int, seconds: float, clients: int) -> Iterator[Stretch]:
    """Yield stretches; at least `clients` clients come in them altogether."""
    order = (False, True, True, False) * rounds
    for is_watched in order:
        began_at = time.monotonic()
        if is_watched:
            crowd.come_and_go(seconds, -(-clients // sum(order)))
        else:
            _sleep_until(began_at + seconds)
        yield Stretch(is_watched, began_at, time.monotonic())


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


def _compare(cost: Cost, clients: int, stretches: Sequence[Stretch], steps: Sequence[Step]) -> Result:
    ratio, null_ratio = compare(stretches, steps)
    watched = [stretch for stretch in stretches if stretch.is_watched]
    telling = [
        1000 * (step.told_at - step.done_at)
        for step in steps
        if any(stretch.began_at <= step.done_at < stretch.ended_at for stretch in watched)
    ]
    return Result(
        cost=cost,
        clients=clients,
        ratio=ratio,
        null_ratio=null_ratio,
        step_milliseconds=1000 * statistics.median(step.told_at - step.began_at for step in steps),
        telling_milliseconds=statistics.median(telling),
        longest_telling_milliseconds=max(telling),
    )


def compare(stretches: Sequence[Stretch], steps: Sequence[Step]) -> tuple[Ratio, Ratio]:
    """Return the ratio of watched stretches to their neighbours, and that of neighbours nobody watched."""
    moments = [step.told_at for step in steps]
    speeds = [
        # Between two steps a share of one has been done.
        float(np.diff(np.interp([stretch.began_at, stretch.ended_at], moments, np.arange(len(moments))))[0])
        / (stretch.ended_at - stretch.began_at)
        for stretch in stretches
    ]
    ratios, null_ratios = [], []
    for (one, speed), (other, next_speed) in pairwise(zip(stretches, speeds, strict=True)):
        if one.is_watched != other.is_watched:
            ratios.append(speed / next_speed if one.is_watched else next_speed / speed)
        elif not one.is_watched:
            null_ratios.append(speed / next_speed)
    return Ratio.of(ratios), Ratio.of(null_ratios)


def main() -> int:
    """Measure, print, and exit with 1 where the crowd costs more than one step in a hundred."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=70, help="times four stretches, two of them watched")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a stretch")
    parser.add_argument("--clients", type=int, default=1000, help="clients in all")
    parser.add_argument("--json", action="store_true", help="print the result as one line of JSON as well")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds: two at least, since null pairs lie between them")
    result = measure(options.rounds, options.seconds, options.clients)
    cost, verdict = result.cost, result.ratio.verdict
    print(f"the daemon's processor time, with a status document of {cost.status_kb:.0f} kB:")
    print(f"  {cost.seconds_per_thousand_clients:6.2f} s for a thousand clients that come and vanish")
    print(f"  {cost.milliseconds_per_listener_second:6.3f} ms for each second that one listens")
    print(f"speed of a step ({result.step_milliseconds:.1f} ms) while {result.clients} clients came and went")
    print(f"  {result.ratio} of that without them; wanted at least {LEAST_RATIO}: {verdict}")
    print(f"  {result.null_ratio} where nobody looked on in either stretch")
    print(
        f"telling the daemon of a step took {result.telling_milliseconds:.3f} ms while others looked on, "
        f"{result.longest_telling_milliseconds:.1f} ms at most"
    )
    if options.json:
        print(json.dumps({**asdict(result), "verdict": verdict}))
    return 1 if verdict == "not met" else 0


if __name__ == "__main__":
    sys.exit(main())
