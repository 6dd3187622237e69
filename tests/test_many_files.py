"""Thousands of files at once keep nobody waiting who gives a command."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from tests.daemon_base import Base
from tests.waiting import wait_until

ANSWER_SECONDS = 2.0


def test_a_command_is_answered_while_thousands_of_files_come_in(tmp_path: Path) -> None:
    base = Base(tmp_path / "base")
    for number in range(3_000):
        (base.paths.inbox / f"{number:05d}.jsonl").write_text(f'{{"stub": {{}}, "number": {number}}}\n')
    daemon = base.start()
    try:
        wait_until(lambda: any(base.paths.processing.iterdir()), seconds=60)
        waited = []
        for command in ("pause", "resume", "pause"):
            given_at = time.monotonic()
            base.command(command)
            wait_until(partial(base.acknowledged, command))
            waited.append(time.monotonic() - given_at)
        # The middle one: something else on the machine may hold up any one of them.
        assert sorted(waited)[1] < ANSWER_SECONDS
    finally:
        daemon.kill()
        daemon.communicate()
        wait_until(lambda: base.workers() == [])
