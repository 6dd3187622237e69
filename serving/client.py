"""Asks the inference server of a base folder, where one runs."""

from __future__ import annotations

import contextlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

import durable
from chat_template import Message
from config import Config, Paths
from errors import EnvironmentNotReady, TrainboxError, UsageError
from monitoring.training_status import start_ticks
from serving.access import read_token

HEALTH_SECONDS = 15.0
"""A server whose process lives may be slow to answer on a machine that trains."""
ANSWER_SECONDS = 600.0


@dataclass(frozen=True)
class InferenceClient:
    """Speaks to one server."""

    url: str
    token: str | None

    def is_healthy(self) -> bool:
        """Tell whether it answers at all."""
        try:
            return bool(self.get("/health", HEALTH_SECONDS)["status"] == "ok")
        except TrainboxError:
            return False

    def get(self, path: str, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Return the document at a path; raises what `ask` raises."""
        with self._open(path, None, seconds) as response:
            document: dict[str, Any] = orjson.loads(response.read())
            return document

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the document that answers a request; raises what `ask` raises."""
        with self._open(path, body, ANSWER_SECONDS) as response:
            document: dict[str, Any] = orjson.loads(response.read())
            return document

    def ask(self, messages: Sequence[Message], model: str, *, max_tokens: int | None = None) -> Iterator[str]:
        """Yield a greedy answer as it comes.

        Raises UsageError when the request is refused, EnvironmentNotReady when it cannot be answered now.
        """
        body = {"messages": messages, "model": model, "max_tokens": max_tokens, "stream": True}
        with self._open("/v1/chat/completions", body, ANSWER_SECONDS) as response:
            for line in response:
                yield from _text_of(line)

    @contextlib.contextmanager
    def _open(self, path: str, body: dict[str, Any] | None, seconds: float) -> Iterator[Any]:
        headers = {"Content-Type": "application/json"}
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else orjson.dumps(body)
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with _DIRECT.open(request, timeout=seconds) as response:
                yield response
        except urllib.error.HTTPError as error:
            raise _refusal(error.code, error.read()) from error
        except (OSError, http.client.HTTPException) as error:
            raise EnvironmentNotReady(f"{self.url}: the inference server went away: {error}") from error


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy for the world is not one for this machine."""


def find_server(
    paths: Paths, config: Config, environment: Mapping[str, str] = os.environ
) -> InferenceClient | None:
    """Return a client of the server that answers for this base folder, or None where none runs."""
    try:
        document = durable.read_json(paths.inference_address)
    except FileNotFoundError:
        return None
    if start_ticks(document["pid"]) != document["pid_start_ticks"]:
        return None
    client = InferenceClient(document["url"], read_token(config.serving, paths.base, environment))
    return client if client.is_healthy() else None


def _text_of(line: bytes) -> Iterator[str]:
    """Yield the text of one line of server-sent events; raise what went wrong on the way."""
    data = line.strip().removeprefix(b"data: ")
    if not data or data == b"[DONE]":
        return
    document = orjson.loads(data)
    if "error" in document:
        raise EnvironmentNotReady(document["error"]["message"])
    for choice in document["choices"]:
        yield choice["delta"].get("content", "")


def _refusal(status: int, body: bytes) -> TrainboxError:
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = f"the inference server answered {status}"
    later = status >= 500 or status == 429
    return EnvironmentNotReady(message) if later else UsageError(message)
