"""A monitor on a real port in this process, and a plain client that says what it is told to say."""

from __future__ import annotations

import http.client
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import durable
from config import Config, Paths, load_config
from serving.access import AccessRules, access_rules
from serving.monitor_thread import MonitorThread
from tests.waiting import PATIENCE_SECONDS, wait_until


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks one server, a connection for each question."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.host, self.port = parts.hostname, parts.port

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request; ``_`` in the names of headers stands for ``-``."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_SECONDS)
        try:
            named = {name.replace("_", "-"): value for name, value in (headers or {}).items()}
            connection.request(method, path, body, named)
            response = connection.getresponse()
            answered = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, answered, response.read())
        finally:
            connection.close()

    def listen(self, path: str = "/api/events", **headers: str) -> Listener:
        return Listener(self.host, self.port, path, headers)


class Listener:
    """One client of server-sent events."""

    def __init__(self, host: str, port: int, path: str, headers: Mapping[str, str]) -> None:
        self._socket = socket.create_connection((host, port), timeout=PATIENCE_SECONDS)
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}:{port}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self._pending = b""

    def next(self, event: str) -> Any:
        """Return the data of the next event of that name."""
        name = None
        while True:
            line = self._line()
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == event:
                return json.loads(line.removeprefix("data: "))

    def close(self, *, is_cut_off: bool = False) -> None:
        """Go, with a word or as when a cable is pulled."""
        if is_cut_off:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def _line(self) -> str:
        while b"\n" not in self._pending:
            chunk = self._socket.recv(65536)
            assert chunk, "the server has closed the stream"
            self._pending += chunk
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode().rstrip("\r")


class Served:
    """A monitor of a base folder, on a free port, for as long as the context lasts."""

    def __init__(self, paths: Paths, *overrides: str, config: Config | None = None) -> None:
        self.paths = paths
        paths.create()
        settings = ["serving.monitor_port=0", *overrides]
        self.config = config or load_config(paths.base, settings)
        self.rules: AccessRules = access_rules(self.config.serving, paths.base, {})
        self.thread = MonitorThread(paths, self.config, self.rules, retry_seconds=0.05)

    def __enter__(self) -> Client:
        self.thread.start()
        wait_until(self.paths.monitor_address.exists)
        return Client(durable.read_json(self.paths.monitor_address)["url"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thread.stop()
