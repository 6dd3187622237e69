"""What a crowd that looks on costs a run: the time of a training step with listeners, and without.

``python -m benchmarks.monitor`` starts one real daemon with its monitor and a worker whose steps are a fixed
amount of arithmetic. Stretches with 1,000 clients of /api/events that come and vanish alternate with
stretches without any; each pair gives one ratio of the median step times. The clients live in a process of
their own and come `--rate` a second: what they burn themselves is not the daemon's cost, so on two cores keep
the rate low.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import durable
from config import Paths

ROOT = Path(__file__).parent.parent
LIMIT_RATIO = 1.01
CLIENTS = 1000
WATCHING_SECONDS = 0.5
"""How long a client listens before it vanishes."""
WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
os.sched_setaffinity(0, {{0}})
from tests import stub_worker

def work(seconds):
    for _ in range({loops}):
        sum(i * i for i in range(1000))

time.sleep, stub_worker.time.sleep = work, work
sys.exit(stub_worker.main(sys.argv[1:]))
"""
DAEMON = """
import sys, daemon
from pathlib import Path
base, worker = sys.argv[1:]
settings = ("inbox.settle_seconds=0.2", "disk.min_free_bytes=0", "serving.monitor=true", "serving.monitor_port=0")
sys.exit(daemon.run(Path(base), overrides=settings, worker_command=(sys.executable, worker)))
"""
