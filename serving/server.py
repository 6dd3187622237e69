"""uvicorn inside another process: a bounded number of connections, and an end that is told from outside."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""A connection that has not asked for anything by then is closed."""
GRACE_SECONDS = 2
LAST_TURNS = 5
"""Turns of the loop in which a connection accepted at the last moment comes to be, or is closed."""


class Server(uvicorn.Server):
    """Serves one application on sockets that are bound already."""

    def __init__(
        self, app: ASGIApp, most_connections: int, *, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        """`on_stop` is called in the event loop to end what would go on for ever."""
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_bounded(most_connections),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )
        self._on_stop = on_stop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_told = False
        self._has_ended = asyncio.Event()

    def stop(self) -> None:
        """End the server, from any thread."""
        self._is_told = True
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._end)

    async def main_loop(self) -> None:
        """Wait for the end; nothing is looked at every so often, so an idle server costs nothing."""
        await self.on_tick(0)
        self._loop = asyncio.get_running_loop()
        if self._is_told:
            self._end()
        await self._has_ended.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does; then cut off who does not read what was still to be sent.

        Before it, what was accepted comes to be: asyncio closes nothing of a connection whose server has
        closed between the two.
        """
        for listener in (listener for server in self.servers for listener in server.sockets):
            asyncio.get_running_loop().remove_reader(listener)
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
        await super().shutdown(sockets)
        for _ in range(LAST_TURNS):
            for connection in list(self.server_state.connections):
                connection.transport.abort()
            await asyncio.sleep(0)  # in which the loop closes what was cut off

    def _end(self) -> None:
        self.should_exit = True
        self._on_stop()
        self._has_ended.set()


def _bounded(most: int) -> type[asyncio.Protocol]:
    """Return the protocol of a connection, of which there are at most so many."""

    class Bounded(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                self.connections.discard(self)
                cast(asyncio.Transport, transport).abort()
                return
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._expect_request)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

        def _expect_request(self) -> None:
            if self.cycle is None:
                self.transport.close()

    return Bounded
