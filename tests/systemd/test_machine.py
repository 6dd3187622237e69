"""The systemd of our own leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

from tests.systemd.machine import Machine


def test_when_it_is_shut_down_no_mount_no_process_and_no_control_group_is_left(
    machine: Machine, tmp_path: Path
) -> None:
    before = Path("/proc/self/mounts").read_text(encoding="utf-8")
    second = Machine(tmp_path)
    second.run("systemd-run", "--unit=stubborn", "sh", "-c", "trap : TERM; while :; do sleep 1000; done")
    assert second.processes()
    second.shut_down()
    assert second.processes() == []
    assert Path("/proc/self/mounts").read_text(encoding="utf-8") == before
    assert list((tmp_path / "scratch").iterdir()) == []
