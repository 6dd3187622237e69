"""Server-sent events: the status document, to every client at once and again whenever it changes.

One watcher looks at the file for all clients. A client is told the newest document when it can take one;
what came in between is not kept for it, so a slow client costs no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

LOOK_SECONDS = 0.2
PING_SECONDS = 15.0
RETRY_MILLISECONDS = 2000
"""A browser whose connection broke comes back after so long."""
_RETRY = b"retry: %d\n\n" % RETRY_MILLISECONDS
_PING = b"event: ping\ndata: {}\n\n"


class StatusStream:
    """Watches a JSON document while anybody listens; lives in the server's event loop."""

    def __init__(
        self, document: Path, *, look_seconds: float = LOOK_SECONDS, ping_seconds: float = PING_SECONDS
    ) -> None:
        self._document = document
        self._look_seconds = look_seconds
        self._ping_seconds = ping_seconds
        self._watcher: asyncio.Task[None] | None = None
        self._seen: tuple[int, int] | None = None
        self._newest: bytes | None = None
        self._number = 0
        self._has_changed = asyncio.Event()
        self._is_closed = False
        self.listeners = 0
        """Clients that listen now."""

    @property
    def is_watching(self) -> bool:
        return self._watcher is not None

    def close(self) -> None:
        """End every stream, so that a server can stop."""
        self._is_closed = True
        self._tell()

    async def messages(self) -> AsyncGenerator[bytes]:
        """Yield the document now, then each newer one, and a ping when nothing happens for long."""
        told = self._number
        yield _RETRY + (self._newest or b"")
        while not self._is_closed:
            changed = self._has_changed
            if told != self._number and self._newest is not None:
                told = self._number
                yield self._newest
                continue
            try:
                async with asyncio.timeout(self._ping_seconds):  # wait_for may swallow a cancellation
                    await changed.wait()
            except TimeoutError:
                yield _PING

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Keep the watcher at work inside."""
        self.listeners += 1
        if self._watcher is None:
            self._look()
            self._watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self.listeners -= 1
            if self.listeners == 0:
                self._watcher.cancel()
                self._watcher = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            self._look()

    def _look(self) -> None:
        try:
            facts = os.stat(self._document)
            signature = (facts.st_mtime_ns, facts.st_ino)
            if signature == self._seen:
                return
            document = orjson.loads(self._document.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return  # not there, or not to be read now; who looks for it sees that the heartbeat is old
        self._seen = signature
        self._newest = _message("status", document)
        self._number += 1
        self._tell()

    def _tell(self) -> None:
        self._has_changed.set()
        self._has_changed = asyncio.Event()


class EventStreamResponse(Response):
    """The answer that goes on until the client or the server ends it; a client that vanished is let go."""

    media_type = "text/event-stream"

    def __init__(self, stream: StatusStream) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stream.listening(), asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(self._send(send))
            await _gone(receive)
            sending.cancel()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with contextlib.aclosing(self._stream.messages()) as messages:
            async for message in messages:
                await send({"type": "http.response.body", "body": message, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _message(name: str, document: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(document) + b"\n\n"
