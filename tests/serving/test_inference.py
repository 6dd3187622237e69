"""A real `trainbox serve` with the tiny model, asked by OpenAI's own client."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import durable
from config import Paths, load_config
from evaluation.generation import Generator
from serving.decoding import Batch
from serving.inference import InferenceServer
from tests.serving.inference_process import ServerProcess, training
from tests.serving.published import make_base, publish
from tests.waiting import wait_until
from training.model import load_generator
from training.versions import VersionStore

QUESTION = "what colour is the rain"
LONGEST = 4000
"""Tokens of an answer that nobody waits for to its end: the greedy one to the question goes on for ever."""
LONG_ANSWERS = f"serving.max_output_tokens={LONGEST}"
CHAT: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Paths:
    made = make_base(tmp_path_factory.mktemp("served"), tiny_model, "serving.max_queue=40", LONG_ANSWERS)
    for seed in range(3):
        publish(made, tiny_model, seed)
    return made


@pytest.fixture(scope="module")
def server(paths: Paths) -> Iterator[ServerProcess]:
    running = ServerProcess(paths)
    yield running
    assert running.end() == 0
    assert not paths.inference_address.exists()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with server.openai() as ours:
        yield ours


def generator(paths: Paths, model: str) -> Generator:
    return load_generator(paths, load_config(paths.base), model)


def test_models_are_the_base_current_and_every_version(client: openai.OpenAI, paths: Paths) -> None:
    assert [model.id for model in client.models.list()] == ["base", "current", "v0001", "v0002", "v0003"]
    assert client.models.retrieve("current").id == "current"
    with pytest.raises(openai.NotFoundError, match="no version"):
        client.models.retrieve("v0009")


@pytest.mark.parametrize("model", ["base", "v0001", "current"])
def test_a_chat_answer_is_that_of_the_command_line(client: openai.OpenAI, paths: Paths, model: str) -> None:
    given = client.chat.completions.create(model=model, messages=CHAT, max_tokens=16)
    (answer,) = generator(paths, model).generate([CHAT], max_new_tokens=16)
    assert given.choices[0].message.content == answer.text
    assert given.choices[0].finish_reason == answer.finish_reason
    assert given.usage is not None
    assert given.usage.prompt_tokens == answer.prompt_tokens
    assert given.usage.completion_tokens == answer.tokens
    assert given.model == {"current": "v0003"}.get(model, model)


def test_a_plain_question_gets_the_same_answer(server: ServerProcess, paths: Paths) -> None:
    (answer,) = generator(paths, "current").generate([CHAT], max_new_tokens=16)
    given = server.ours.post("/generate", {"prompt": QUESTION, "max_tokens": 16})
    assert given["text"] == answer.text
    assert given["usage"]["total_tokens"] == answer.prompt_tokens + answer.tokens
    assert "".join(server.ours.ask(CHAT, "current", max_tokens=16)) == answer.text


def test_a_streamed_chat_adds_up_to_the_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="current", messages=CHAT, max_tokens=30)
    chunks = list(
        client.chat.completions.create(
            model="current", messages=CHAT, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(text or "" for text in texts) == whole.choices[0].message.content
    assert len(texts) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_plain_texts_are_gone_on_with(client: openai.OpenAI) -> None:
    both = client.completions.create(model="base", prompt=["the small grey", "a ticket"], max_tokens=9)
    one = client.completions.create(model="base", prompt="a ticket", max_tokens=9)
    assert both.choices[1].text == one.choices[0].text
    assert both.choices[0].text != both.choices[1].text
    streamed = client.completions.create(model="base", prompt="a ticket", max_tokens=9, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_sampling_follows_its_seed_and_stops_are_kept_out(client: openai.OpenAI) -> None:
    def ask(**wish: Any) -> str:
        given = client.chat.completions.create(model="current", messages=CHAT, max_tokens=24, **wish)
        return given.choices[0].message.content or ""

    greedy = ask()
    assert ask() == ask(temperature=0) == greedy
    assert ask(temperature=1.3, seed=1) == ask(temperature=1.3, seed=1) != ask(temperature=1.3, seed=2)
    assert ask(temperature=1.3, seed=1, top_p=0.0) == greedy
    stop = greedy[4:7]
    assert ask(stop=[stop, "never said"]) == greedy.partition(stop)[0]


BAD: list[tuple[dict[str, Any], int]] = [
    ({"messages": []}, 400),
    ({"messages": "red"}, 400),
    ({"messages": [{"role": "nobody", "content": "red"}]}, 400),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400),
    ({"messages": CHAT, "model": "gpt-9"}, 404),
    ({"messages": CHAT, "model": "../v0001"}, 404),
    ({"messages": CHAT, "temperature": 9}, 400),
    ({"messages": CHAT, "temperature": float("nan")}, 400),
    ({"messages": CHAT, "max_tokens": 0}, 400),
    ({"messages": CHAT, "max_tokens": 10**40}, 400),
    ({"messages": CHAT, "seed": 2**64}, 400),
    ({"messages": CHAT, "stop": [""]}, 400),
    ({"messages": CHAT, "n": 2}, 400),
    ({"messages": CHAT, "tools": [{"type": "function"}]}, 400),
    ({"messages": CHAT, "response_format": {"type": "json_object"}}, 400),
]


@pytest.mark.parametrize(("body", "status"), BAD)
def test_what_cannot_be_answered_is_refused_in_the_shape_of_openai(
    server: ServerProcess, body: dict[str, Any], status: int
) -> None:
    found, answer = post(server.url, "/v1/chat/completions", json.dumps(body).encode())
    assert found == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"[]", b'"red"'])
def test_malformed_json_is_refused_in_the_shape_of_openai(server: ServerProcess, body: bytes) -> None:
    found, answer = post(server.url, "/generate", body)
    assert found == 400
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/v1/models/%2e%2e%2fx", 404)])
def test_a_path_that_leads_nowhere_is_refused_in_the_shape_of_openai(
    server: ServerProcess, path: str, status: int
) -> None:
    found, answer = post(server.url, path, None)
    assert (found, answer["error"]["type"]) == (status, "invalid_request_error")


@pytest.mark.config_key("serving.max_output_tokens")
def test_nobody_gets_more_than_the_longest_answer(server: ServerProcess) -> None:
    found, answer = post(
        server.url, "/generate", json.dumps({"prompt": "red", "max_tokens": LONGEST + 1}).encode()
    )
    assert found == 400
    assert "serving.max_output_tokens" in answer["error"]["message"]


@pytest.mark.config_key("serving.max_prompt_tokens", "serving.max_batch", "serving.inference_port")
def test_limits_are_those_of_the_configuration(tmp_path: Path, tiny_model: Path) -> None:
    paths = make_base(
        tmp_path, tiny_model, "serving.max_prompt_tokens=30", "serving.max_batch=1", LONG_ANSWERS
    )
    server = ServerProcess(paths, "serving.max_queue=1")
    port = urlparse(server.url).port
    assert port not in (0, 9000)
    found, answer = post(server.url, "/generate", json.dumps({"prompt": "rain " * 40}).encode())
    assert found == 400
    assert "serving.max_prompt_tokens" in answer["error"]["message"]
    assert server.ours.get("/health")["current"] == "base"
    with server.openai() as client, long_streams(client, 1) as streams:
        wait_until(lambda: server.ours.get("/health")["running"] == 1)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(
                lambda: client.chat.completions.create(model="base", messages=CHAT, max_tokens=2)
            )
            wait_until(lambda: waiting.done() or server.ours.get("/health")["waiting"] == 1)
            assert not waiting.done()
            with pytest.raises(openai.RateLimitError, match=r"serving\.max_queue") as refused:
                client.chat.completions.create(model="base", messages=CHAT)
            assert refused.value.response.headers["retry-after"] == "1"
            streams.close()
            assert waiting.result().choices[0].finish_reason is not None
    assert server.end() == 0


def test_a_client_that_goes_away_frees_its_place(server: ServerProcess) -> None:
    for body in ({"stream": True}, {}):
        address = urlparse(server.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port)
        asked = {"model": "base", "messages": CHAT, "max_tokens": LONGEST, **body}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), headers)
        wait_until(lambda: server.ours.get("/health")["running"] == 1)
        connection.close()
        wait_until(lambda: server.ours.get("/health")["running"] == 0)
    assert server.ours.get("/health")["waiting"] == 0


def test_no_request_fails_while_current_moves(server: ServerProcess, paths: Paths, tiny_model: Path) -> None:
    """Every answer is one of the version that it names, whole."""
    store = VersionStore(paths)
    names = [version.name for version in store.list()]
    expected = {name: generator(paths, name).generate([CHAT], max_new_tokens=12)[0].text for name in names}
    done, answers = threading.Event(), []

    def load() -> None:
        with server.openai() as client:
            while not done.is_set():
                given = client.chat.completions.create(model="current", messages=CHAT, max_tokens=12)
                answers.append((given.model, given.choices[0].message.content))

    with concurrent.futures.ThreadPoolExecutor(4) as pool, server.openai() as client:
        loads = [pool.submit(load) for _ in range(4)]
        for swap in range(20):
            wanted = names[swap % len(names)]
            store.promote(wanted, "a test wants it")
            given = client.chat.completions.create(model="current", messages=CHAT, max_tokens=12)
            assert given.model == wanted
        done.set()
        for one in loads:
            one.result()
    assert {name for name, _ in answers} == set(names)
    assert all(text == expected[name] for name, text in answers)
    store.promote("v0003", "a test wants it")


def test_a_damaged_version_is_never_answered_with(
    client: openai.OpenAI, paths: Paths, tiny_model: Path
) -> None:
    bad = publish(paths, tiny_model, 9, promote=False)
    weights = bad.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(openai.InternalServerError, match="damaged"):
        client.chat.completions.create(model=bad.name, messages=CHAT, max_tokens=2)
    durable.remove_tree(bad.folder)
    assert client.chat.completions.create(model="current", messages=CHAT, max_tokens=2).choices


TOKEN = "abcdefghijklmnop0123"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[ServerProcess]:
    """A server that asks for a token and refuses to answer while a run trains."""
    folder = tmp_path_factory.mktemp("guarded")
    token = folder / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    settings = (f"serving.token_file={token}", "serving.during_training=refuse")
    running = ServerProcess(make_base(folder / "box", tiny_model, *settings))
    yield running
    assert running.end() == 0


def test_a_token_is_asked_for_where_one_is_set(guarded: ServerProcess) -> None:
    with guarded.openai() as wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    with guarded.openai(TOKEN) as right:
        assert [model.id for model in right.models.list()] == ["base", "current"]
    assert "".join(guarded.ours.ask(CHAT, "base", max_tokens=3))


@pytest.mark.config_key("serving.during_training")
def test_nothing_is_answered_while_a_run_trains_if_so_configured(guarded: ServerProcess) -> None:
    with guarded.openai(TOKEN) as client, training(guarded) as base:
        with pytest.raises(openai.InternalServerError, match="training") as refused:
            client.chat.completions.create(model="base", messages=CHAT, max_tokens=2)
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["retry-after"]) > 0
        assert set(refused.value.response.json()["error"]) == {"message", "type", "param", "code"}
        base.command("pause")  # which ends the worker, so that the GPU is free
        wait_until(lambda: not guarded.ours.get("/health")["is_training"])
        assert client.chat.completions.create(model="base", messages=CHAT, max_tokens=2).choices


@pytest.mark.config_key("serving.during_training")
def test_the_gpu_is_shared_with_a_run_unless_configured_otherwise(
    server: ServerProcess, client: openai.OpenAI
) -> None:
    before = client.chat.completions.create(model="current", messages=CHAT, max_tokens=12)
    with training(server):
        during = client.chat.completions.create(model="current", messages=CHAT, max_tokens=12)
        assert during.choices == before.choices
        assert server.ours.get("/health")["is_training"]


def test_a_server_whose_model_is_broken_says_so_and_ends(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rounds between the requests have nothing to do and show nothing."""

    def lost_gpu(*arguments: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    paths = make_base(tmp_path, tiny_model)
    serving = InferenceServer(paths, load_config(paths.base), {})
    monkeypatch.setattr(Batch, "join", lost_gpu)
    seen: list[tuple[int, int]] = []

    def ask_three_times() -> None:
        wait_until(paths.inference_address.exists)
        url = durable.read_json(paths.inference_address)["url"]
        for _ in range(3):
            asked, _ = post(url, "/generate", b'{"prompt": "red"}')
            seen.append((asked, post(url, "/health", None)[0] if len(seen) < 2 else 0))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_three_times)
        assert serving.run() == 1
        asking.result()
    assert seen == [(503, 503), (503, 503), (503, 0)]


EXAMPLES = 20
"""Requests made up for each route."""
CONFORMANCE: list[Any] = [status_code_conformance, content_type_conformance, response_schema_conformance]


def test_answers_to_requests_that_a_machine_makes_up_are_those_of_the_document(server: ServerProcess) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) == 6
    for operation in operations:
        assert 200 in try_out(operation.as_strategy(), server.url), operation.label
        assert "422" not in operation.definition.raw["responses"]
    assert server.ours.get("/health")["status"] == "ok"


def try_out(strategy: SearchStrategy[Any], url: str) -> list[int]:
    """Send some of the requests, every other one for a model that there is; return the statuses."""
    statuses: list[int] = []

    @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=strategy)
    def call(case: Any) -> None:
        if isinstance(case.body, dict):
            case.body |= {"max_tokens": 2} | ({"model": "base"} if len(statuses) % 2 else {})
        if case.path_parameters and len(statuses) % 2:
            case.path_parameters["model"] = "current"
        response = case.call(base_url=url)
        statuses.append(response.status_code)
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=CONFORMANCE)

    call()
    return statuses


class long_streams:
    """Streams that go on until they are closed."""

    def __init__(self, client: openai.OpenAI, count: int) -> None:
        self._streams = [
            client.chat.completions.create(model="base", messages=CHAT, max_tokens=LONGEST, stream=True)
            for _ in range(count)
        ]

    def __enter__(self) -> long_streams:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


def post(url: str, path: str, body: bytes | None) -> tuple[int, Any]:
    address = urlparse(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    connection.request("GET" if body is None else "POST", path, body, {"content-type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer
