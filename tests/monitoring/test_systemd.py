"""What systemd hears, on a real socket."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.systemd import Notifier


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


def test_state_is_sent_to_the_socket_systemd_names(listener: socket.socket) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": listener.getsockname()})
    notifier.send("READY=1", "STATUS=idle")
    assert listener.recv(1000) == b"READY=1\nSTATUS=idle"


def test_an_abstract_socket_is_understood() -> None:
    name = f"trainbox-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(5)
        Notifier("@" + name).send("STOPPING=1")
        assert listener.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("pid", "heard"), [(str(os.getpid()), True), ("1", False), (None, True)], ids=["ours", "another", "none"]
)
def test_the_watchdog_is_pinged_only_when_it_waits_for_us(
    listener: socket.socket, pid: str | None, heard: bool
) -> None:
    environment = {"NOTIFY_SOCKET": listener.getsockname(), "WATCHDOG_USEC": "1000000"}
    notifier = Notifier.from_environment(environment | ({"WATCHDOG_PID": pid} if pid else {}))
    notifier.ping()
    notifier.send("STATUS=end")
    assert listener.recv(1000) == (b"WATCHDOG=1" if heard else b"STATUS=end")


def test_three_pings_fit_into_the_time_the_watchdog_waits_however_often_the_loop_goes_round(
    listener: socket.socket,
) -> None:
    moment = 0.0
    notifier = Notifier(listener.getsockname(), watchdog_seconds=6.0, clock=lambda: moment)
    assert notifier.ping_seconds == 2.0
    for tick in range(60):
        moment = tick / 10
        notifier.ping()
    notifier.send("STATUS=end")
    heard = [listener.recv(1000) for _ in range(7)]
    assert heard == [b"WATCHDOG=1"] * 6 + [b"STATUS=end"]


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    notifier.ping()
    notifier.send("READY=1")
    assert (notifier._address, notifier.ping_seconds) == (None, math.inf)


def test_a_socket_that_is_gone_is_logged_once_and_spoken_to_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = tmp_path / "gone"
    notifier = Notifier(str(address))
    notifier.send("READY=1")
    notifier.send("STATUS=idle")
    assert len(caplog.records) == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as back:
        back.bind(str(address))
        back.settimeout(5)
        notifier.send("STATUS=training")
        assert back.recv(1000) == b"STATUS=training"


def test_a_systemd_that_does_not_read_holds_the_loop_up_for_a_moment_only(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("monitoring.systemd.SEND_SECONDS", 0.01)
    notifier = Notifier(listener.getsockname())
    while not caplog.records:
        notifier.send("STATUS=training " + "x" * 1000)
    assert "Could not tell systemd our state" in caplog.text
