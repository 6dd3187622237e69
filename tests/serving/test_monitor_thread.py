"""The monitor inside a process that has other things to do: it comes, goes, and never stands in the way."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

import durable
from config import Config, Paths
from errors import ConfigError
from monitoring.training_status import start_ticks
from serving.access import AccessRules
from serving.monitor_thread import MOST_CONNECTIONS, NICENESS, MonitorThread, listen, most_connections
from tests.serving.served import Client, Served
from tests.waiting import wait_until

LOWEST_PRIORITY = 19
"""The kernel knows none below."""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def test_the_address_lies_in_a_file_for_as_long_as_it_is_served(paths: Paths) -> None:
    with Served(paths) as client:
        found = durable.read_json(paths.monitor_address)
        assert found == {
            "url": f"http://127.0.0.1:{client.port}",
            "pid": os.getpid(),
            "pid_start_ticks": start_ticks(os.getpid()),
        }
    assert not paths.monitor_address.exists()


@pytest.mark.config_key("serving.monitor_port")
def test_the_port_is_the_configured_one_and_is_free_again_afterwards(paths: Paths) -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    for _ in range(2):
        with Served(paths, f"serving.monitor_port={port}") as client:
            assert client.port == port
            assert client.get("/health").json()["status"] == "unknown"


def test_a_port_in_use_is_a_trouble_until_it_is_free(paths: Paths) -> None:
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        served = Served(paths, f"serving.monitor_port={port}")
        served.thread.start()
        wait_until(lambda: served.thread.trouble)
        assert f"monitor on 127.0.0.1 port {port}: Address already in use" in (served.thread.trouble or "")
    wait_until(paths.monitor_address.exists)
    wait_until(lambda: served.thread.trouble is None)
    assert Client(durable.read_json(paths.monitor_address)["url"]).get("/api/versions").status == 200
    served.thread.stop()


def test_an_address_that_this_machine_does_not_have_is_a_trouble_and_no_crash(paths: Paths) -> None:
    (paths.base / "token").write_text("t" * 20)
    (paths.base / "token").chmod(0o600)
    served = Served(paths, "serving.host=192.0.2.1", "serving.token_file=token")
    served.thread.start()
    wait_until(lambda: served.thread.trouble)
    assert "192.0.2.1" in (served.thread.trouble or "")
    served.thread.stop()


def test_ipv6_is_served_with_brackets_in_the_url(paths: Paths) -> None:
    try:
        listen("::1", 0).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with Served(paths, "serving.host=::1"):
        assert durable.read_json(paths.monitor_address)["url"].startswith("http://[::1]:")


def test_its_threads_stand_behind_those_of_the_daemon(paths: Paths) -> None:
    before = set(threading.enumerate())
    with Served(paths) as client:
        assert client.get("/health").status == 503
        threads = set(threading.enumerate()) - before
        assert len(threads) > 1  # its own, and one at least that reads files
        theirs = {os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) for thread in threads}
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert theirs == {min(ours + NICENESS, LOWEST_PRIORITY)}


def test_one_that_was_never_started_can_be_stopped(paths: Paths) -> None:
    thread = MonitorThread(paths, Config(), AccessRules(None, 1))
    thread.stop()
    assert thread.trouble is None


def test_it_never_takes_more_than_half_of_the_descriptors() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 0 < most_connections() <= min(MOST_CONNECTIONS, max(soft // 2, 1))


def test_a_host_that_others_reach_is_refused_before_anything_is_bound(paths: Paths) -> None:
    with pytest.raises(ConfigError):
        Served(paths, "serving.host=0.0.0.0")
    assert not paths.monitor_address.exists()
