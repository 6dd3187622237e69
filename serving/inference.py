"""The inference server: one process that loads the base once and answers for every version on port 9000."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from config import Config, Paths
from errors import UsageError
from monitoring.systemd import Notifier
from serving.access import Access, access_rules
from serving.adapters import AdaptedModel
from serving.answering import Answering
from serving.batching import Engine
from serving.catalogue import CURRENT, Catalogue
from serving.client import write_address
from serving.inference_api import inference_api
from serving.monitor_thread import address, listen
from serving.openai_api import error_body
from serving.server import Server
from serving.tickets import Piece, Ticket
from training.model import set_threads

logger = logging.getLogger(__name__)

PING_SECONDS = 0.25
"""Time between two signs of life, each of which sees whether there is still something alive."""
MORE_CONNECTIONS = 64
"""Connections beyond those that run and wait."""


class InferenceServer:
    """Loads, listens, answers until told to stop."""

    def __init__(self, paths: Paths, config: Config, environment: Mapping[str, str]) -> None:
        """Raises ConfigError when others could ask without a token."""
        self._paths = paths
        self._config = config
        self._rules = access_rules(config.serving, paths.base, environment)
        self._notifier = Notifier.from_environment(environment)
        self._catalogue = Catalogue(paths, config.model)
        self._model = AdaptedModel(config)
        self._loop = asyncio.new_event_loop()
        serving = config.serving
        self._engine = Engine(self._model, serving.max_batch, serving.max_queue, self._hand_out)
        self._answering = Answering(paths, config, self._catalogue, self._engine)
        connections = serving.max_batch + serving.max_queue + MORE_CONNECTIONS
        api = inference_api(self._answering, self._health)
        self._server = _Server(Access(api, self._rules, error_body), connections)

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return 0 then, 1 when the model is broken."""
        with self._listen() as listener, contextlib.closing(self._loop):
            self._get_ready()
            self._engine.start()
            try:
                with self._known_at(address(listener)):
                    self._loop.run_until_complete(self._serve(listener))
            finally:
                self._engine.stop()
        return int(self._engine.is_broken)

    def _listen(self) -> socket.socket:
        serving = self._config.serving
        try:
            return listen(serving.host, serving.inference_port)
        except OSError as error:
            raise UsageError(
                f"serving.inference_port: cannot listen on {serving.host} port {serving.inference_port}: "
                f"{error.strerror}; end what listens there, or choose another port"
            ) from error

    def _get_ready(self) -> None:
        """Load what will be asked for first, so that the first answer does not wait for it."""
        set_threads(self._config.train)
        self._answering.see_training()
        self._engine.load_now(self._answering.find(CURRENT))
        self._answering.see_current()

    async def _serve(self, listener: socket.socket) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._server.stop)
        beside = [asyncio.ensure_future(each) for each in (self._answering.follow(), self._keep_alive())]
        try:
            await self._server.serve([listener])
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    async def _keep_alive(self) -> None:
        """Show systemd that the loop goes round until the model is broken; end the server then."""
        while not self._engine.is_broken:
            self._notifier.ping()
            await asyncio.sleep(PING_SECONDS)
        logger.error("Ending: the model is broken; a fresh process has to take the place of this one")
        self._server.stop()

    @contextlib.contextmanager
    def _known_at(self, url: str) -> Iterator[None]:
        """Tell where the server listens for as long as it does."""
        write_address(self._paths, url)
        logger.info("Answering at %s", url)
        self._notifier.send("READY=1", f"STATUS=answering at {url}")
        try:
            yield
        finally:
            self._notifier.send("STOPPING=1")
            self._paths.inference_address.unlink(missing_ok=True)

    def _hand_out(self, pieces: Sequence[tuple[Ticket, Piece]]) -> None:
        """Bring the pieces of a round into the event loop at once, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            self._loop.call_soon_threadsafe(_receive, pieces)

    def _health(self) -> dict[str, Any]:
        current, trouble = self._answering.current()
        return {
            "status": "failing" if self._engine.failures else "ok",
            "pid": os.getpid(),
            "base_folder": str(self._paths.base),
            "current": current,
            "trouble": trouble,
            "device": self._model.device,
            "adapters": self._model.adapters,
            "running": self._engine.running,
            "waiting": self._engine.waiting,
            "is_training": self._answering.is_training,
        }


class _Server(Server):
    """Leaves signals to the process it is all of."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _receive(pieces: Sequence[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in pieces:
        ticket.receive(piece)
