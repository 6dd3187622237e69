"""Thousands of files at once keep nobody waiting who gives a command."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tests.daemon_base import Base
from tests.waiting import wait_until


def test_a_command_is_answered_while_thousands_of_files_come_in(tmp_path: Path) -> None:
    base = Base(tmp_path / "base")
    for number in range(3_000):
        (base.paths.inbox / f"{number:05d}.jsonl").write_text(f'{{"stub": {{}}, "number": {number}}}\n')
    daemon = base.start()
    try:
        wait_until(lambda: any(base.paths.processing.iterdir()))
        for command in ("pause", "resume", "pause"):
            base.command(command)
            wait_until(partial(base.acknowledged, command))
        assert len(list(base.paths.inbox.glob("*.jsonl"))) > 1_000  # not when all of them were in
    finally:
        daemon.kill()
        daemon.communicate()
        wait_until(lambda: base.workers() == [])
