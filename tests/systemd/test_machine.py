"""The systemd of our own leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.systemd.machine import Machine


def mounts(ours: Path) -> list[str]:
    """Return what is mounted here; tests at work beside this one mount small disks in their own folders."""
    tests = f"{tempfile.gettempdir()}/"
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    places = [line.split()[1] for line in lines]
    return [place for place in places if place.startswith(str(ours)) or not place.startswith(tests)]


def test_when_it_is_shut_down_no_mount_no_process_and_no_control_group_is_left(
    machine: Machine, tmp_path: Path
) -> None:
    before = mounts(tmp_path)
    second = Machine(tmp_path)
    second.run("systemd-run", "--unit=stubborn", "sh", "-c", "trap : TERM; while :; do sleep 1000; done")
    assert second.processes()
    second.shut_down()
    assert second.processes() == []
    assert mounts(tmp_path) == before
    assert list((tmp_path / "scratch").iterdir()) == []
