"""A server that follows what goes on in its base folder: a run that trains, and a current on another base."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import durable
from chat_template import ChatTemplate
from config import Paths, load_config
from errors import IntegrityError
from monitoring.training_status import TrainingStatus, read_status
from serving import answering
from serving.adapters import AdaptedModel
from serving.answering import Answering, trains
from serving.batching import Engine
from serving.catalogue import Catalogue
from serving.openai_api import GenerateRequest
from tests.serving.inference_process import ServerProcess, training
from tests.serving.published import make_base, publish
from tests.waiting import wait_until
from training.consolidation import Consolidation
from training.model import load_generator
from training.versions import VersionStore

CHAT: Any = [{"role": "user", "content": "what colour is the rain"}]
ASKING = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[ServerProcess]:
    paths = make_base(tmp_path_factory.mktemp("followed"), tiny_model, "serving.during_training=cpu")
    publish(paths, tiny_model, 1)
    running = ServerProcess(paths)
    yield running
    assert running.end() == 0, running.log.read_text(encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, tiny_model: Path) -> Answering:
    """What takes requests in this process, for a version of the tiny model; its engine stands still."""
    paths = make_base(tmp_path / "desk", tiny_model)
    publish(paths, tiny_model, 1)
    config = load_config(paths.base)
    engine = Engine(AdaptedModel(config), 1, 100, lambda pieces: None)
    return Answering(paths, config, Catalogue(paths, config.model), engine)


def answer_of(paths: Paths, version: str) -> str:
    generator = load_generator(paths, load_config(paths.base), version)
    (answer,) = generator.generate([CHAT], max_new_tokens=12)
    return answer.text


@pytest.mark.config_key("serving.during_training")
def test_the_cpu_answers_while_a_run_trains_if_so_configured(server: ServerProcess) -> None:
    with server.openai() as client, training(server):
        wait_until(lambda: server.ours.get("/health")["device"] == "cpu")
        given = client.chat.completions.create(model="current", messages=CHAT, max_tokens=12)
        assert server.ours.get("/health")["is_training"]
    assert given.choices[0].message.content == answer_of(server.paths, "v0001")


@pytest.mark.parametrize(
    ("state", "job_id", "expected"),
    [
        ("starting", None, False),  # the daemon itself
        ("starting", "000001-3f9c2a10", True),
        ("evaluating", "000001-3f9c2a10", True),
        ("paused", "000001-3f9c2a10", False),
        ("idle", None, False),
    ],
)
def test_a_run_is_what_has_a_job_and_a_phase(
    state: Any, job_id: str | None, expected: bool, tmp_path: Path
) -> None:
    """The test itself is the daemon that the status is of."""
    paths = Paths(tmp_path)
    paths.create()
    assert not trains(read_status(paths))
    status = TrainingStatus(state=state, job_id=job_id)
    durable.write_json(paths.status_file, status.model_dump(mode="json"))
    assert trains(read_status(paths)) is expected


def test_a_look_that_ends_by_an_error_nobody_foresaw_is_told_and_tried_again(
    desk: Answering, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other look goes on meanwhile."""
    monkeypatch.setattr(answering, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(answering, "TROUBLE_SECONDS", 0.001)
    looks: dict[str, int] = {"training": 0, "current": 0}

    def look(at: str) -> None:
        looks[at] += 1
        if at == "current" and looks[at] < 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(desk, "see_training", lambda: look("training"))
    monkeypatch.setattr(desk, "see_current", lambda: look("current"))

    async def follow() -> None:
        following = asyncio.ensure_future(desk.follow())
        while min(looks.values()) < 5:
            assert not following.done()
            await asyncio.sleep(0.001)
        following.cancel()

    asyncio.run(follow())
    (told,) = [record for record in caplog.records if record.exc_info is not None]
    assert "can't allocate memory" in str(told.exc_info)


def test_nobody_who_asks_what_is_known_waits_for_what_is_looked_through(
    desk: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than the loop has threads ask for a version whose bytes take for ever."""
    desk.find("base")
    plain, is_let_go = VersionStore.verify, threading.Event()

    def slow(*arguments: Any) -> None:
        is_let_go.wait()
        plain(*arguments)

    monkeypatch.setattr(VersionStore, "verify", slow)

    async def ask() -> list[str]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(2))
        waiting = [asyncio.ensure_future(desk.begin(asked("v0001"), encode)) for _ in range(4)]
        known = await desk.begin(asked("base"), encode)
        assert not any(each.done() for each in waiting)
        assert desk.name_of("v0001") == desk.name_of("current") == "v0001"
        is_let_go.set()
        return [known.served.name, *(answers.served.name for answers in await asyncio.gather(*waiting))]

    assert asyncio.run(ask()) == ["base", *["v0001"] * 4]


def test_how_the_server_is_can_be_told_while_current_is_damaged(desk: Answering, tmp_path: Path) -> None:
    desk.see_current()
    assert desk.current() == ("v0001", None)
    paths = Paths(tmp_path / "desk")
    bad = publish(paths, Path(load_config(paths.base).model.base), 2)
    weights = bad.folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(IntegrityError):
        desk.see_current()
    name, trouble = desk.current()
    assert name is None and trouble is not None and "v0002" in trouble
    VersionStore(paths).promote("v0001", "a test wants it")
    desk.see_current()
    assert desk.current() == ("v0001", None)


def asked(model: str) -> GenerateRequest:
    return GenerateRequest(prompt="red", model=model)


def encode(template: ChatTemplate) -> list[list[int]]:
    return [template.encode_beginning("red")]


class Askers:
    """Clients that ask `current`, and how the server is, without a pause; nothing they ask may fail."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._done = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(ASKING + 1)
        self.answers: list[tuple[str, str | None]] = []
        self.devices: list[str | None] = []

    def __enter__(self) -> Askers:
        self._asking = [self._pool.submit(self._ask) for _ in range(ASKING)]
        self._asking.append(self._pool.submit(self._look))
        return self

    def __exit__(self, *problem: object) -> None:
        self._done.set()
        self._pool.shutdown()
        for one in self._asking:
            one.result()

    def until_answered_by(self, version: str) -> None:
        """Wait until `current` is that version for one of them; fail at once when one of them fails."""
        begun = len(self.answers)

        def is_answered() -> bool:
            for one in self._asking:
                if one.done():
                    one.result()
            return any(name == version for name, _ in self.answers[begun:])

        wait_until(is_answered)

    def _ask(self) -> None:
        with self._server.openai() as client:
            while not self._done.is_set():
                given = client.chat.completions.create(model="current", messages=CHAT, max_tokens=12)
                self.answers.append((given.model, given.choices[0].message.content))

    def _look(self) -> None:
        while not self._done.is_set():
            health = self._server.ours.get("/health")
            assert health["status"] == "ok"
            self.devices.append(health["device"])


def test_no_request_fails_while_current_moves_to_a_version_on_another_base(server: ServerProcess) -> None:
    """The other base is loaded beside the one that answers, once for each move."""
    paths = server.paths
    log_before = server.log.read_text(encoding="utf-8")
    with Askers(server) as askers:
        askers.until_answered_by("v0001")
        merged = Consolidation(paths, load_config(paths.base)).carry_out()
        assert merged.name == "v0002"
        askers.until_answered_by("v0002")
        VersionStore(paths).rollback()
        askers.until_answered_by("v0001")
    expected = {name: answer_of(paths, name) for name in ("v0001", "v0002")}
    assert {name for name, _ in askers.answers} == set(expected)
    assert all(text == expected[name] for name, text in askers.answers)
    assert "cpu" in askers.devices
    log = server.log.read_text(encoding="utf-8").removeprefix(log_before)
    loaded = re.findall(r"Loaded (/\S+) in float32", log)
    assert loaded == [str(paths.consolidated / "v0001"), load_config(paths.base).model.base]


def test_a_version_on_another_base_is_answered_when_it_is_named(server: ServerProcess) -> None:
    with server.openai() as client:
        for version in ("v0002", "v0001", "v0002"):
            given = client.chat.completions.create(model=version, messages=CHAT, max_tokens=12)
            assert (given.model, given.choices[0].message.content) == (
                version,
                answer_of(server.paths, version),
            )
    assert server.ours.get("/health")["current"] == "v0001"
