"""Pause is a level, the other commands are consumed once, and what lies there is data."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from config import Paths
from training.control import MAX_REASON_BYTES, Command, Control


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path)


@pytest.fixture
def control(paths: Paths) -> Control:
    return Control(paths)


EDGES: list[Command] = ["resume", "skip", "stop"]


def test_nothing_is_wanted_where_nothing_lies(control: Control) -> None:
    assert control.look() == []
    assert control.pause is None


@pytest.mark.parametrize("command", EDGES)
def test_an_edge_is_consumed_once_with_its_reason(paths: Paths, control: Control, command: Command) -> None:
    paths.control(command).write_text("  the power goes at noon\n", encoding="utf-8")
    (request,) = control.look()
    assert (request.command, request.reason) == (command, "the power goes at noon")
    assert not paths.control(command).exists()
    assert control.look() == []


def test_touch_gives_no_reason(paths: Paths, control: Control) -> None:
    paths.control("skip").touch()
    assert [request.reason for request in control.look()] == [None]


def test_a_pause_holds_as_long_as_its_file_lies_there(paths: Paths, control: Control) -> None:
    paths.control("pause").write_text("gaming", encoding="utf-8")
    (request,) = control.look()
    assert (request.command, request.reason) == ("pause", "gaming")
    assert control.look() == []
    assert control.pause is not None and control.pause.received_at == request.received_at
    assert Control(paths).look()[0].command == "pause"
    paths.control("pause").unlink()
    assert control.look() == []
    assert control.pause is None


def test_a_resume_removes_the_pause(paths: Paths, control: Control) -> None:
    paths.control("pause").touch()
    control.look()
    paths.control("resume").touch()
    assert [request.command for request in control.look()] == ["resume"]
    assert control.pause is None
    assert os.listdir(paths.base) == []


def test_a_resume_wins_over_a_pause_seen_with_it(paths: Paths, control: Control) -> None:
    paths.control("resume").touch()
    paths.control("pause").touch()
    assert [request.command for request in control.look()] == ["resume"]
    assert control.pause is None


def test_a_stop_from_before_the_daemon_is_consumed_and_ignored(
    paths: Paths, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    paths.control("stop").write_text("old", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        control.discard_stop()
    assert "Ignored a .stop older than this daemon (reason: old)" in caplog.text
    assert control.look() == []
    assert not paths.control("stop").exists()


def test_a_reason_is_cut_and_may_be_any_bytes(paths: Paths, control: Control) -> None:
    paths.control("skip").write_bytes(b"\xff" + b"x" * 100_000)
    (request,) = control.look()
    assert request.reason is not None
    assert request.reason == "\N{REPLACEMENT CHARACTER}" + "x" * (MAX_REASON_BYTES - 1)


def test_what_is_not_a_plain_file_is_no_command_and_is_reported_once(
    paths: Paths, control: Control, caplog: pytest.LogCaptureFixture
) -> None:
    paths.control("stop").symlink_to("/etc/passwd")
    paths.control("pause").mkdir()
    os.mkfifo(paths.control("skip"))
    with caplog.at_level(logging.WARNING):
        assert control.look() == control.look() == []
    assert control.pause is None
    assert len(caplog.records) == 3
    assert len(os.listdir(paths.base)) == 3


def test_several_commands_are_all_heard(paths: Paths, control: Control) -> None:
    for command in ("pause", "skip", "stop"):
        paths.control(command).touch()
    assert [request.command for request in control.look()] == ["pause", "skip", "stop"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("command", ["pause", *EDGES])
def test_a_command_of_a_user_who_does_not_own_the_folder_is_told_once_and_ignored(
    paths: Paths, control: Control, command: Command, caplog: pytest.LogCaptureFixture
) -> None:
    path = paths.control(command)
    path.touch()
    os.chown(path, 1500, 1500)
    for _ in range(2):
        assert control.look() == []
    assert path.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"Ignored {path}: it belongs to user 1500, to whom the base folder does not"
    ]
    os.chown(paths.base, 1500, 1500)
    assert [request.command for request in control.look()] == [command]
