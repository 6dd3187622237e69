"""The routes of the inference server in this process: what they hold on to, and what they say."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
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


def refusal(app: FastAPI, path: str, body: bytes) -> tuple[int, str, str | None]:
    """Return the status of an answer that has the shape of an error, its sentence, and what it is about."""

    async def ask() -> Caller:
        caller = Caller(app, path, body)
        with contextlib.suppress(FileNotFoundError):  # which whoever serves the application logs
            await caller.asking
        return caller

    caller = asyncio.run(ask())
    error = orjson.loads(caller.sent[1]["body"])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return caller.sent[0]["status"], error["message"], error["param"]


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


UNCLEAR: list[tuple[str, dict[str, Any], str, str]] = [
    ("completions", {"prompt": [1, 2, 3]}, "prompt.0", "valid string"),
    ("completions", {"prompt": ""}, "prompt.0", "at least 1 character"),
    ("completions", {"prompt": 7}, "prompt", "valid list"),
    ("completions", {"prompt": "\\ud800"}, "prompt.0", "unicode"),
    ("completions", {"prompt": "red", "stop": ["a"] * 5}, "stop", "at most 4"),
    ("completions", {"prompt": "red", "logprobs": 0}, "logprobs", "leave it out"),
    ("chat/completions", user(None), "messages.0.content", "found null"),
    ("chat/completions", user([{"type": "image_url"}]), "messages.0.content.0.type", "found 'image_url'"),
    ("chat/completions", user([{"type": "text"}]), "messages.0.content.0.text", "required"),
    ("chat/completions", user("red", tool_calls=[{"id": "1"}]), "messages.0.tool_calls", "leave it out"),
    *(
        ("chat/completions", {**user("red"), name: value}, name, "leave it out")
        for name, value in {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "n": True}.items()
    ),
    (
        "chat/completions",
        {**user("red"), "model": "gpt-9"},
        "model",
        "'gpt-9', expected one of: base, current",
    ),
]


@pytest.mark.parametrize(("path", "body", "param", "words"), UNCLEAR)
def test_what_cannot_be_done_is_refused_in_words_a_caller_knows(
    desk: Desk, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    asked = orjson.dumps(body).replace(rb"\\ud800", rb"\ud800")
    status, message, about = refusal(desk.app, f"/v1/{path}", asked)
    assert status == (404 if param == "model" else 400)
    assert about == param and message.startswith(f"{param}: ") and words in message
    assert "function" not in message and "0x" not in message
    assert not desk.tickets


def test_values_that_ask_for_nothing_are_taken(desk: Desk) -> None:
    nothing = {"top_k": -1, "min_p": 0, "repetition_penalty": 1.0, "n": 1, "tools": [], "logprobs": False}
    body = {**user([{"type": "text", "text": "red"}], tool_calls=None), **nothing, "stop": "."}

    async def ask() -> None:
        caller = Caller(desk.app, "/v1/chat/completions", orjson.dumps(body))
        await until_queued(desk, 1)
        caller.gone.set()
        await caller.asking

    asyncio.run(ask())
    assert desk.tickets[0].stop == ["."]


def test_a_body_that_is_no_json_is_told_where_it_ends_to_be(desk: Desk) -> None:
    status, message, about = refusal(desk.app, "/generate", b'{"prompt": ')
    assert (status, about) == (400, None)
    assert message.startswith("body: no JSON: ")


def test_an_error_nobody_foresaw_has_the_shape_of_openai(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise FileNotFoundError(2, "No such file", "/secret/place")

    monkeypatch.setattr(Catalogue, "known", fail)
    status, message, _ = refusal(desk.app, "/generate", b'{"prompt": "red"}')
    assert status == 500
    assert "FileNotFoundError" in message and "/secret/place" not in message


def test_the_document_tells_every_way_in_which_a_question_may_end(desk: Desk) -> None:
    document = desk.app.openapi()
    error = {"$ref": "#/components/schemas/ErrorBody"}
    for path in ("/v1/chat/completions", "/v1/completions", "/generate"):
        answers = document["paths"][path]["post"]["responses"]
        assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
        for status in (400, 401, 404, 413, 429, 503):
            assert answers[str(status)]["content"]["application/json"]["schema"] == error
        assert "422" not in answers
    assert "HTTPValidationError" not in document["components"]["schemas"]
    health = document["paths"]["/health"]["get"]["responses"]
    assert health["503"]["content"] == health["200"]["content"]
