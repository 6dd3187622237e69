"""Server-sent events: the newest status at once and on every change, however many listen or vanish."""

from __future__ import annotations

import asyncio
import gc
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

import durable
from config import Paths
from serving.access import Access, AccessRules
from serving.monitor_thread import address, listen
from serving.server import Server
from serving.stream import EventStreamResponse, StatusStream
from tests.serving.served import Client, Served
from tests.waiting import wait_until

CLIENTS, WAVE = 1000, 100
MOST_GROWTH_BYTES = 16 * 2**20


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = Paths(tmp_path)
    paths.create()
    return paths


def write(paths: Paths, number: int, padding: str = "") -> None:
    durable.write_json(paths.status_file, {"number": number, "padding": padding}, sync=False)


def test_a_client_gets_the_status_at_once_and_each_change(paths: Paths) -> None:
    write(paths, 1)
    with Served(paths) as client, closing(client.listen()) as listener:
        assert listener.next("status")["number"] == 1
        write(paths, 2)
        assert listener.next("status")["number"] == 2


def test_a_client_that_comes_before_the_first_status_gets_it_later(paths: Paths) -> None:
    with Served(paths) as client, closing(client.listen()) as listener:
        write(paths, 7)
        assert listener.next("status")["number"] == 7


def test_a_torn_document_is_passed_over(paths: Paths) -> None:
    write(paths, 1)
    with Served(paths) as client, closing(client.listen()) as listener:
        listener.next("status")
        paths.status_file.write_bytes(b'{"number": ')
        write(paths, 2)
        assert listener.next("status")["number"] == 2


class Streaming:
    """A server of nothing but one stream, whose insides a test can see."""

    def __init__(self, document: Path, *, ping_seconds: float = 60.0, most_connections: int = 2000) -> None:
        self.stream = StatusStream(document, look_seconds=0.02, ping_seconds=ping_seconds)
        events = Route("/api/events", lambda request: EventStreamResponse(self.stream))
        access = Access(Starlette(routes=[events]), AccessRules(None, 1000))
        self.server = Server(access, most_connections, on_stop=self.stream.close)
        self._listener = listen("127.0.0.1", 0)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self._listener])))

    def __enter__(self) -> Client:
        url = address(self._listener)
        self._thread.start()
        return Client(url)

    def __exit__(self, *error: object) -> None:
        self.server.stop()
        self._thread.join()

    @property
    def is_forgotten(self) -> bool:
        """Nobody is listening, and nothing is left of those who did."""
        state = self.server.server_state
        return self.stream.listeners == 0 and not state.connections and not state.tasks


def test_a_thousand_clients_that_come_and_vanish_leave_nothing_behind(paths: Paths) -> None:
    write(paths, 1, "x" * 20_000)
    streaming = Streaming(paths.status_file)
    with streaming as client:
        vanish(client, WAVE)  # whatever is made once is there now
        wait_until(lambda: streaming.is_forgotten)
        gc.collect()
        me = psutil.Process()
        before = (me.num_fds(), me.num_threads())
        resident = me.memory_info().rss
        for wave in range(CLIENTS // WAVE):
            vanish(client, WAVE)
            write(paths, wave, "x" * 20_000)
        wait_until(lambda: streaming.is_forgotten)
        gc.collect()
        # Of what other tests have left, something may go meanwhile.
        wait_until(lambda: me.num_fds() <= before[0] and me.num_threads() <= before[1])
        assert me.memory_info().rss - resident < MOST_GROWTH_BYTES


def vanish(client: Client, count: int) -> None:
    """Let clients listen all at once, and go: some say so, some are cut off."""
    listeners = [client.listen() for _ in range(count)]
    for listener in listeners:
        listener.next("status")
    for number, listener in enumerate(listeners):
        listener.close(is_cut_off=number % 2 == 0)


def test_clients_above_the_limit_are_turned_away_until_others_have_gone(paths: Paths) -> None:
    write(paths, 1)
    streaming = Streaming(paths.status_file, most_connections=3)
    with streaming as client:
        listeners = [client.listen() for _ in range(3)]
        for listener in listeners:
            listener.next("status")
        with closing(client.listen()) as refused, pytest.raises((OSError, AssertionError)):
            refused.next("status")
        listeners.pop().close()
        wait_until(lambda: streaming.stream.listeners == 2)
        late = client.listen()
        assert late.next("status")["number"] == 1
        for listener in (*listeners, late):
            listener.close()


def test_a_quiet_stream_is_kept_open_by_pings(paths: Paths) -> None:
    with Streaming(paths.status_file, ping_seconds=0.01) as client, closing(client.listen()) as listener:
        assert [listener.next("ping"), listener.next("ping")] == [{}, {}]


def test_a_server_that_stops_ends_its_streams_at_once(paths: Paths) -> None:
    write(paths, 1)
    streaming = Streaming(paths.status_file)
    with streaming as client:
        listener = client.listen()
        listener.next("status")
    assert streaming.is_forgotten
    listener.close()


def test_nothing_is_watched_while_nobody_listens(paths: Paths) -> None:
    write(paths, 1)
    streaming = Streaming(paths.status_file)
    with streaming as client:
        listener = client.listen()
        listener.next("status")
        listener.close()
        wait_until(lambda: streaming.is_forgotten)
        assert not streaming.stream.is_watching


def test_a_slow_client_gets_the_newest_and_not_what_it_missed(paths: Paths) -> None:
    padding = "x" * 200_000
    write(paths, 0, padding)
    with Streaming(paths.status_file) as client, closing(client.listen()) as slow:
        with closing(client.listen()) as quick:
            for number in range(1, 60):
                write(paths, number, padding)
                while quick.next("status")["number"] != number:
                    pass
        told = [slow.next("status")["number"]]
        while told[-1] != 59:
            told.append(slow.next("status")["number"])
    assert told == sorted(set(told))
    assert len(told) < 60
