"""A daemon without the rights of root: what it may not read or move stays where it lies, and is named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_base import Base
from tests.waiting import wait_until

# Root passes by permissions by two capabilities, which a process may give up for good.
WITHOUT_RIGHTS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.getuid() == 0 else ()


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Base]:
    made = Base(tmp_path / "base")
    made.launcher = WITHOUT_RIGHTS
    yield made
    made.close()


def test_what_may_not_be_read_or_moved_is_named_holds_up_nothing_and_is_trained_once_it_may(
    base: Base,
) -> None:
    unreadable = base.drop("unreadable.jsonl")
    unreadable.chmod(0)
    locked = base.drop("locked/inside.jsonl").parent
    locked.chmod(0o555)
    base.drop("plain.jsonl")
    daemon = base.start("inbox.poll_seconds=0.2")
    wait_until(lambda: base.files("done") == {"plain.jsonl"})
    wait_until(lambda: base.is_in("idle") and len(base.status.queue.left_in_place) == 2)
    reasons = base.status.queue.left_in_place
    assert "give the daemon's user permission to read it" in reasons["unreadable.jsonl"]
    assert "permission to move files out of it" in reasons["locked/inside.jsonl"]
    assert unreadable.exists() and (locked / "inside.jsonl").exists()
    unreadable.chmod(0o644)
    locked.chmod(0o755)
    wait_until(lambda: {job.name for job in base.jobs() if job.outcome == "completed"} == NAMES)
    wait_until(lambda: base.is_in("idle") and base.status.queue.left_in_place == {})
    base.end(daemon)
    assert len(base.inputs_of_versions()) == 3


NAMES = {"plain.jsonl", "unreadable.jsonl", "inside.jsonl"}


def test_a_base_folder_that_may_not_be_written_is_named_and_the_daemon_ends(base: Base) -> None:
    base.paths.status_file.parent.chmod(0o555)
    daemon = base.start()
    _, complaint = daemon.communicate()
    assert daemon.returncode == 1
    assert (
        "Permission denied" in complaint.decode() and str(base.paths.status_file.parent) in complaint.decode()
    )
    base.paths.status_file.parent.chmod(0o755)
