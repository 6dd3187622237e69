"""The routes of the inference server: OpenAI's, and `/generate` for a plain question."""

from __future__ import annotations

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
from serving.openai_answers import (
    ChatAnswer,
    ChatShape,
    CompletionAnswer,
    CompletionShape,
    ErrorBody,
    Health,
    Model,
    ModelList,
    PlainAnswer,
    PlainShape,
)
from serving.openai_api import ApiError, ChatRequest, CompletionRequest, GenerateRequest, Wish, error_body
from serving.tickets import Piece

CLIENT_GONE = 499
"""Status nobody reads."""
OWNER = "trainbox"

REFUSALS = {
    400: "What was asked cannot be done here",
    401: "A token is needed",
    403: "A page of another site asks",
    404: "There is no such model",
    413: "The request is longer than serving.max_body_bytes",
    421: "The host is none of this machine's names",
    429: "As many requests wait as may; Retry-After tells when to come back",
    500: "The server failed",
    503: "It cannot be answered now, because a run trains or a model is damaged",
}
"""What the document says of each status that is not 200."""
ANYWHERE = (401, 403, 413, 421, 500)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the document says of these statuses, each of which has OpenAI's shape."""
    return {status: {"model": ErrorBody, "description": REFUSALS[status]} for status in statuses}


ANSWERS = {200: {"content": {"text/event-stream": {}}}, **_errors(*REFUSALS)}
"""What the document says of a route that answers, at once or as a stream."""
TellHealth = Callable[[], dict[str, Any]]


class _Api(FastAPI):
    """Leaves out of its document the answers that FastAPI would give and this one does not."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        return document


def inference_api(answering: Answering, health: TellHealth) -> FastAPI:
    """Return the application; who may ask it is decided before it."""
    app = _Api(
        title="trainbox inference",
        description="The base model and every version of it, asked as OpenAI's clients ask.",
        docs_url=None,
        redoc_url=None,
    )
    _shape_errors(app)

    @app.get("/docs", include_in_schema=False)
    def tell_routes() -> HTMLResponse:
        return api_page(app.openapi())

    @app.get("/health", response_model=Health, responses={503: {"model": Health}, **_errors(*ANYWHERE)})
    def tell_health() -> JSONResponse:
        """Tell how the server is; 503 while the last answers ended by an error of its own."""
        found = health()
        return JSONResponse(found, 200 if found["status"] == "ok" else 503)

    @app.get("/v1/models", response_model=ModelList, responses=_errors(*ANYWHERE, 503))
    def list_models() -> dict[str, Any]:
        """List every name that can be asked for."""
        return {"object": "list", "data": [_model_card(name) for name in answering.catalogue.names()]}

    @app.get("/v1/models/{model}", response_model=Model, responses=_errors(*ANYWHERE, 404, 503))
    def tell_model(model: str) -> dict[str, Any]:
        """Tell which version, or the base, answers to a name."""
        return {**_model_card(model), "root": answering.name_of(model)}

    @app.post("/v1/chat/completions", response_model=ChatAnswer, responses=ANSWERS)
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        messages = [message.plain() for message in asked.messages]
        answers = await answering.begin(asked, lambda template: [template.encode_prompt(messages)])
        return await _respond(asked, request, answers, ChatShape(answers.served.name))

    @app.post("/v1/completions", response_model=CompletionAnswer, responses=ANSWERS)
    async def complete(asked: CompletionRequest, request: Request) -> Response:
        """Go on with texts."""
        answers = await answering.begin(asked, _plain_texts(asked))
        return await _respond(asked, request, answers, CompletionShape(answers.served.name))

    @app.post("/generate", response_model=PlainAnswer, responses=ANSWERS)
    async def generate(asked: GenerateRequest, request: Request) -> Response:
        """Answer one question."""
        answers = await answering.begin(asked, lambda template: [template.encode_prompt(asked.messages)])
        return await _respond(asked, request, answers, PlainShape(answers.served.name))

    return app


async def _respond(asked: Wish, request: Request, answers: Answers, shape: ChatShape) -> Response:
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
    shape: ChatShape,
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
