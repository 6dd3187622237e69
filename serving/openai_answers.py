"""OpenAI's answers as far as they are given here: what the document says of them, and how they are made."""

from __future__ import annotations

import time
import uuid
from typing import Any, Literal

from pydantic import BaseModel

from serving.tickets import FinishReason, Piece


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class Said(BaseModel):
    """What a model says in a conversation."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One answer to a conversation."""

    index: int
    message: Said
    logprobs: None
    finish_reason: FinishReason


class ChatAnswer(BaseModel):
    """What ``/v1/chat/completions`` answers."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    """Which version, or ``base``, has answered."""
    choices: list[ChatChoice]
    usage: Usage


class CompletionChoice(BaseModel):
    """How one text goes on."""

    index: int
    text: str
    logprobs: None
    finish_reason: FinishReason


class CompletionAnswer(BaseModel):
    """What ``/v1/completions`` answers."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class PlainAnswer(BaseModel):
    """What ``/generate`` answers."""

    model: str
    text: str
    finish_reason: FinishReason
    usage: Usage


class ModelCard(BaseModel):
    """A name that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Model(ModelCard):
    """A name, and what answers to it."""

    root: str


class ModelList(BaseModel):
    """What ``/v1/models`` answers."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok", "failing"]
    pid: int
    base_folder: str
    current: str | None
    """The version that answers as ``current``; null while none can."""
    trouble: str | None
    """What is wrong with ``current``."""
    device: str | None
    adapters: list[str]
    running: int
    waiting: int
    is_training: bool


class Error(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error as OpenAI shapes it."""

    error: Error


class ChatShape:
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


class CompletionShape(ChatShape):
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


class PlainShape(ChatShape):
    """Bodies of ``/generate``."""

    def whole(self, choices: list[Piece], usage: Usage) -> dict[str, Any]:
        (piece,) = choices
        words = {"text": piece.text, "finish_reason": piece.finish_reason}
        return {"model": self._head["model"], **words, "usage": usage.model_dump()}

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        return {"model": self._head["model"], "text": piece.text, "finish_reason": piece.finish_reason}

    def last(self, usage: Usage) -> dict[str, Any]:
        return {"model": self._head["model"], "usage": usage.model_dump()}
