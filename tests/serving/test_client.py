"""Whether a server is there is told by its connection, and by nothing that it says."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import Paths, load_config
from errors import UsageError
from serving.client import find_server, write_address

REFUSAL = b'{"error": {"message": "a sentence", "type": "x", "param": null, "code": null}}'


class Stub(http.server.ThreadingHTTPServer):
    """Answers everything alike, on a port of its own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.answer: tuple[int, bytes] = (200, b"")


class _Answering(http.server.BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        status, body = self.server.answer
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[Stub]:
    with Stub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def paths(stub: Stub, tmp_path: Path) -> Paths:
    """A base folder whose inference server is the stub."""
    paths = Paths(tmp_path)
    paths.create()
    write_address(paths, f"http://127.0.0.1:{stub.server_port}")
    return paths


@pytest.mark.parametrize("answer", [(200, b""), (200, b'{"status": "ok"}'), (503, REFUSAL), (503, b"<html>")])
def test_a_server_that_answers_is_there_whatever_it_says(
    stub: Stub, paths: Paths, answer: tuple[int, bytes]
) -> None:
    """The first answer is that of vLLM."""
    stub.answer = answer
    assert find_server(paths, load_config(paths.base)) is not None


@pytest.mark.parametrize(("token", "words"), [(None, "none is known here"), ("x" * 20, "is another")])
def test_a_server_that_wants_a_token_is_no_reason_for_a_second_model(
    stub: Stub, paths: Paths, token: str | None, words: str
) -> None:
    stub.answer = 401, REFUSAL
    settings = []
    if token is not None:
        (paths.base / "token").write_text(token)
        (paths.base / "token").chmod(0o600)
        settings = ["serving.token_file=token"]
    with pytest.raises(UsageError, match=rf"http://127.*{words}.*serving\.token_file"):
        find_server(paths, load_config(paths.base, settings))


def test_an_address_where_nobody_listens_is_no_server(paths: Paths) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        write_address(paths, f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert find_server(paths, load_config(paths.base)) is None
