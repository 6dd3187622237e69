"""The end of a server: whoever came, nothing is left open."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.monitor_thread import listen
from serving.server import Server
from tests.waiting import PATIENCE_SECONDS


def test_a_connection_accepted_in_the_turn_of_the_end_is_closed() -> None:
    """The loop is held up until both are due; pytest makes an error of a socket that nobody closed."""
    is_held, let_go = threading.Event(), threading.Event()

    async def hold_up(request: Request) -> Response:
        is_held.set()
        assert let_go.wait(PATIENCE_SECONDS)
        return Response()

    server = Server(Starlette(routes=[Route("/", hold_up)]), 10)
    with listen("127.0.0.1", 0) as listener:
        place = listener.getsockname()
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        with socket.create_connection(place) as holding:
            holding.sendall(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
            assert is_held.wait(PATIENCE_SECONDS)
            with socket.create_connection(place) as late:
                late.settimeout(PATIENCE_SECONDS)
                server.stop()
                let_go.set()
                thread.join()
                assert late.recv(1) == b""
    gc.collect()
