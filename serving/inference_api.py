"""The routes of the inference server: OpenAI's, and `/generate` for a plain question."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from chat_template import ChatTemplate
from errors import TrainboxError
from serving.answering import Answering, Answers, ClientGone, Encode, api_error, unless_gone
from serving.api_page import api_page
from serving.openai_api import (
    ApiError,
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    Usage,
    Wish,
    error_body,
)
from serving.tickets import Piece

CLIENT_GONE = 499
"""Status nobody reads."""
OWNER = "trainbox"
WELL = "ok"
"""What the status in ``/health`` says of a server whose answers come."""

Health = Callable[[], dict[str, Any]]


def inference_api(answering: Answering, health: Health) -> FastAPI:
    """Return the application; who may ask it is decided before it."""
    app = FastAPI(
        title="trainbox inference",
        description="The base model and every version of it, asked as OpenAI's clients ask.",
        docs_url=None,
        redoc_url=None,
    )
    _shape_errors(app)

    @app.get("/docs", include_in_schema=False)
    def tell_routes() -> HTMLResponse:
        return api_page(app.openapi())

    @app.get("/health")
    def tell_health() -> JSONResponse:
        found = health()
        return JSONResponse(found, 200 if found["status"] == WELL else 503)

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_card(name) for name in answering.catalogue.names()]}

    @app.get("/v1/models/{model}")
    def tell_model(model: str) -> dict[str, Any]:
        return {**_model_card(model), "root": answering.name_of(model)}

    @app.post("/v1/chat/completions")
    async def chat(asked: ChatRequest, request: Request) -> Response:
        messages = [message.plain() for message in asked.messages]
        answers = await answering.begin(asked, lambda template: [template.encode_prompt(messages)])
        return await _respond(asked, request, answers, _Chat(answers.served.name))

    @app.post("/v1/completions")
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        answers = await answering.begin(asked, _plain_texts(asked))
        return await _respond(asked, request, answers, _Completion(answers.served.name))

    @app.post("/generate")
    async def generate(asked: GenerateRequest, request: Request) -> Response:
        answers = await answering.begin(asked, lambda template: [template.encode_prompt(asked.messages)])
        return await _respond(asked, request, answers, _Plain(answers.served.name))

    return app


class _Chat:
    """Bodies of ``/v1/chat/completions``."""

    kind = "chat.completion"
    prefix = "chatcmpl"

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._begun: set[int] = set()

    def whole(self, choices: list[Piece], usage: Usage) -> dict[str, Any]:
        """Return the body of an answer that is not streamed."""
        given = [
            self._choice(index, self._said(piece.text), piece.finish_reason)
            for index, piece in enumerate(choices)
        ]
        return {**self._head, "object": self.kind, "choices": given, "usage": usage.model_dump()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return one event of a streamed answer."""
        choice = self._choice(index, self._added(index, piece.text), piece.finish_reason)
        return {**self._head, "object": self.chunk_kind, "choices": [choice]}

    def last(self, usage: Usage) -> dict[str, Any]:
        """Return the event that tells the usage."""
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": usage.model_dump()}

    @property
    def chunk_kind(self) -> str:
        return f"{self.kind}.chunk"

    def _choice(self, index: int, words: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": index, **words, "logprobs": None, "finish_reason": reason}

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _added(self, index: int, text: str) -> dict[str, Any]:
        role = {} if index in self._begun else {"role": "assistant"}
        self._begun.add(index)
        return {"delta": {**role, "content": text}}


class _Completion(_Chat):
    """Bodies of ``/v1/completions``."""

    kind = "text_completion"
    prefix = "cmpl"

    @property
    def chunk_kind(self) -> str:
        return self.kind

    def _said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _added(self, index: int, text: str) -> dict[str, Any]:
        return {"text": text}


class _Plain(_Chat):
    """Bodies of ``/generate``."""

    def whole(self, choices: list[Piece], usage: Usage) -> dict[str, Any]:
        (piece,) = choices
        words = {"text": piece.text, "finish_reason": piece.finish_reason}
        return {"model": self._head["model"], **words, "usage": usage.model_dump()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        return {"model": self._head["model"], "text": piece.text, "finish_reason": piece.finish_reason}

    def last(self, usage: Usage) -> dict[str, Any]:
        return {"model": self._head["model"], "usage": usage.model_dump()}


async def _respond(asked: Wish, request: Request, answers: Answers, shape: _Chat) -> Response:
    if not asked.stream:
        pieces = await unless_gone(request, answers, answers.finished())
        usage = answers.usage(sum(piece.tokens for piece in pieces))
        return JSONResponse(shape.whole(pieces, usage))
    # With the first piece it is known whether there will be an answer: until then an error has a status.
    coming = answers.pieces()
    first = await unless_gone(request, answers, anext(coming))
    return _Streamed(_events(asked, answers, shape, first, coming), answers)


class _Streamed(StreamingResponse):
    """Frees the places of its answers however it ends: also when nobody waits for the first word of it."""

    def __init__(self, events: AsyncIterator[bytes], answers: Answers) -> None:
        super().__init__(events, media_type="text/event-stream")
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


async def _events(
    asked: Wish,
    answers: Answers,
    shape: _Chat,
    first: tuple[int, Piece],
    coming: AsyncIterator[tuple[int, Piece]],
) -> AsyncIterator[bytes]:
    """Yield a streamed answer as server-sent events."""
    tokens: dict[int, int] = {}
    try:
        index, piece = first
        tokens[index] = piece.tokens
        yield _event(shape.chunk(index, piece))
        async for index, piece in coming:
            tokens[index] = piece.tokens
            yield _event(shape.chunk(index, piece))
        if asked.has_usage_streamed:
            yield _event(shape.last(answers.usage(sum(tokens.values()))))
        yield b"data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _plain_texts(asked: CompletionRequest) -> Encode:
    def encode(template: ChatTemplate) -> list[list[int]]:
        return [template.encode_beginning(text) for text in asked.prompt]

    return encode


def _model_card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


def _invalid(found: Mapping[str, Any]) -> ApiError:
    """Say what one of the errors that pydantic finds means for a caller."""
    if found["type"] == "json_invalid":
        return ApiError(400, f"body: no JSON: {found['ctx']['error']}", code="invalid_json")
    place = ".".join(str(part) for part in found["loc"][1:])
    message = f"{place or 'body'}: {found['msg'].removeprefix('Value error, ')}"
    return ApiError(400, message, code="invalid_value", param=place or None)


def _shape_errors(app: FastAPI) -> None:
    """Have every error answered in OpenAI's shape."""

    @app.exception_handler(ApiError)
    def tell(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(TrainboxError)
    def tell_trouble(request: Request, error: TrainboxError) -> JSONResponse:
        return tell(request, api_error(error))

    @app.exception_handler(RequestValidationError)
    def tell_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return tell(request, _invalid(error.errors()[0]))

    @app.exception_handler(HTTPException)
    def tell_http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            error_body(error.status_code, str(error.detail)), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    def tell_unforeseen(request: Request, error: Exception) -> JSONResponse:
        """What it was is logged by whoever serves the application, to whom it goes on."""
        return tell(request, ApiError(500, f"the server failed: {type(error).__name__}; its log says more"))

    @app.exception_handler(ClientGone)
    def tell_nobody(request: Request, error: ClientGone) -> Response:
        return Response(status_code=CLIENT_GONE)
