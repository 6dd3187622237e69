"""Asks the inference server of a base folder, where one runs, and tells where that is."""

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


class NobodyListens(EnvironmentNotReady):
    """There is no server at the address."""


class CannotNow(EnvironmentNotReady):
    """The server answered that it cannot do it at the moment."""


@dataclass(frozen=True)
class InferenceClient:
    """Speaks to one server."""

    url: str
    token: str | None

    def is_there(self) -> bool:
        """Tell whether a server listens, be it well or not: what is wrong it tells whoever asks it.

        Raises UsageError when it wants a token that is not known here, EnvironmentNotReady when it is silent.
        """
        try:
            with self._open("/health", None, HEALTH_SECONDS) as response:
                response.read()
        except NobodyListens:
            return False
        except CannotNow:
            pass
        return True

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
            raise self._refusal(error.code, error.read()) from error
        except urllib.error.URLError as error:
            kind = NobodyListens if isinstance(error.reason, ConnectionRefusedError) else EnvironmentNotReady
            raise kind(f"{self.url}: the inference server cannot be asked: {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise EnvironmentNotReady(f"{self.url}: the inference server went away: {error}") from error

    def _refusal(self, status: int, body: bytes) -> TrainboxError:
        if status == 401:
            known = "none is known here" if self.token is None else "the one that is known here is another"
            return UsageError(
                f"{self.url}: the inference server wants a token, and {known}; set serving.token_file in "
                "config.yaml, or TRAINBOX_SERVING__TOKEN_FILE, to a file of yours that holds it (mode 600)"
            )
        try:
            message = orjson.loads(body)["error"]["message"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            message = f"{self.url}: the inference server answered {status}"
        return CannotNow(message) if status >= 500 or status == 429 else UsageError(message)


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy for the world is not one for this machine."""


def write_address(paths: Paths, url: str) -> None:
    """Tell `find_server` that this process answers there, for as long as it lives."""
    document = {"url": url, "pid": os.getpid(), "pid_start_ticks": start_ticks(os.getpid())}
    durable.write_json(paths.inference_address, document, sync=False)


def find_server(
    paths: Paths, config: Config, environment: Mapping[str, str] = os.environ
) -> InferenceClient | None:
    """Return a client of the server that answers for this base folder, or None where none runs.

    Raises what `InferenceClient.is_there` raises: one that cannot be asked is no reason for a second model.
    """
    try:
        document = durable.read_json(paths.inference_address)
    except FileNotFoundError:
        return None
    if start_ticks(document["pid"]) != document["pid_start_ticks"]:
        return None
    client = InferenceClient(document["url"], read_token(config.serving, paths.base, environment))
    return client if client.is_there() else None


def _text_of(line: bytes) -> Iterator[str]:
    """Yield the text of one line of server-sent events; raise what went wrong on the way."""
    data = line.strip().removeprefix(b"data: ")
    if not data or data == b"[DONE]":
        return
    document = orjson.loads(data)
    if "error" in document:
        raise EnvironmentNotReady(document["error"]["message"])
    for choice in document["choices"]:
        yield choice["delta"].get("content") or ""
