"""The routes of the inference server in this process: what they hold on to, and what they say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from config import load_config
from serving.adapters import AdaptedModel
from serving.answering import Answering
from serving.batching import Engine
from serving.catalogue import Catalogue
from serving.inference_api import inference_api
from serving.tickets import CannotAnswer, Piece, Ticket
from tests.serving.published import make_base


class StandingEngine(Engine):
    """An engine that stands still, and whose answers the test gives."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__(model, 4, 8, lambda pieces: None)
        self.tickets: list[Ticket] = []

    def submit(self, tickets: Sequence[Ticket]) -> None:
        super().submit(tickets)
        self.tickets += tickets


class Desk:
    """The application and what it has asked its engine for."""

    def __init__(self, app: FastAPI, engine: StandingEngine) -> None:
        self.app = app
        self.engine = engine

    @property
    def tickets(self) -> list[Ticket]:
        return self.engine.tickets


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Desk:
    paths = make_base(tmp_path, tiny_model)
    config = load_config(paths.base)
    engine = StandingEngine(AdaptedModel(config))
    answering = Answering(paths, config, Catalogue(paths, config.model), engine)
    answering.find("base")
    return Desk(inference_api(answering, lambda: {"status": "ok"}), engine)


class Caller:
    """Asks an application without a connection, so that it can go away between any two turns."""

    def __init__(self, app: FastAPI, path: str, body: bytes) -> None:
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        self._body: bytes | None = body
        scope: dict[str, Any] = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}}
        scope |= {"http_version": "1.1"}
        scope |= {"method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": [(b"content-type", b"application/json")], "scheme": "http"}
        self.asking = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        await asyncio.sleep(0)  # as a connection does that has enough to send


async def until_queued(desk: Desk, count: int) -> None:
    while len(desk.tickets) < count:
        await asyncio.sleep(0.001)


def test_a_client_that_goes_away_in_the_turn_of_the_first_piece_frees_its_place(desk: Desk) -> None:
    async def go_away() -> None:
        caller = Caller(desk.app, "/generate", b'{"prompt": "red", "stream": true}')
        await until_queued(desk, 1)
        desk.tickets[0].receive(Piece("first", 1))
        caller.gone.set()
        await caller.asking

    asyncio.run(go_away())
    assert [ticket.is_cancelled for ticket in desk.tickets] == [True]


@pytest.mark.parametrize("stream", ["true", "false"])
def test_a_prompt_that_fails_frees_the_places_of_those_asked_with_it(desk: Desk, stream: str) -> None:
    async def fail() -> Caller:
        body = b'{"prompt": ["red", "green", "blue"], "stream": %s}' % stream.encode()
        caller = Caller(desk.app, "/v1/completions", body)
        await until_queued(desk, 3)
        desk.tickets[1].receive(Piece("", 0, error=CannotAnswer("no memory")))
        await caller.asking
        return caller

    caller = asyncio.run(fail())
    assert caller.sent[0]["status"] == 503
    assert all(ticket.is_cancelled for ticket in desk.tickets)


def test_a_request_that_is_ended_from_outside_frees_its_place(desk: Desk) -> None:
    async def end() -> None:
        caller = Caller(desk.app, "/generate", b'{"prompt": "red"}')
        await until_queued(desk, 1)
        caller.asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller.asking

    asyncio.run(end())
    assert [ticket.is_cancelled for ticket in desk.tickets] == [True]
