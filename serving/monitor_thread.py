"""The monitor inside the daemon: a thread that serves, and that never holds the daemon up.

What goes wrong (a port in use, an address that is not there) is kept as its trouble, of which the daemon
makes an alert, and tried again; training goes on without it. The framework is imported in the thread, so
starting costs the daemon nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import threading
from typing import TYPE_CHECKING

import durable
from config import Config, Paths
from monitoring.training_status import start_ticks
from serving.access import AccessRules

if TYPE_CHECKING:
    from serving.server import Server

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
STOP_SECONDS = 5.0
MOST_CONNECTIONS = 1024
NICENESS = 10
"""How far the page stands behind training steps and the daemon's own loop where processors are short."""


class MonitorThread:
    """Serves the monitor from `start` to `stop`."""

    def __init__(
        self, paths: Paths, config: Config, rules: AccessRules, *, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._paths = paths
        self._config = config
        self._rules = rules
        self._retry_seconds = retry_seconds
        self._is_stopping = threading.Event()
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._work, name="monitor", daemon=True)
        self.trouble: str | None = None
        """Why nothing is served now; it is tried again."""

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, without waiting long for anybody who still listens."""
        self._is_stopping.set()
        with self._lock:
            if self._server is not None:
                self._server.stop()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def _work(self) -> None:
        os.nice(NICENESS)  # on Linux that of this thread, and of those that it starts
        while not self._is_stopping.is_set():
            try:
                self._serve_once()
            except OSError as error:
                self.trouble = f"{self._where}: {error.strerror or error}"
            except Exception as error:
                logger.exception("The monitor met an error nobody foresaw")
                self.trouble = f"{self._where}: {error!r}"
            finally:
                self._server = None
                with contextlib.suppress(OSError):
                    self._paths.monitor_address.unlink(missing_ok=True)
            self._is_stopping.wait(self._retry_seconds)

    def _serve_once(self) -> None:
        """Serve until told to stop; raise OSError where the address is not to be had."""
        with listen(self._config.serving.host, self._config.serving.monitor_port) as listener:
            from serving.monitor import create_app
            from serving.server import Server
            from serving.stream import StatusStream

            stream = StatusStream(self._paths.status_file)
            app = create_app(self._paths, self._config, self._rules, stream)
            server = Server(app, most_connections(), on_stop=stream.close)
            with self._lock:
                self._server = server
                if self._is_stopping.is_set():
                    return
            url = address(listener)
            document = {"url": url, "pid": os.getpid(), "pid_start_ticks": start_ticks(os.getpid())}
            durable.write_json(self._paths.monitor_address, document, sync=False)
            logger.info("Monitor at %s", url)
            self.trouble = None
            asyncio.run(server.serve([listener]))

    @property
    def _where(self) -> str:
        return f"monitor on {self._config.serving.host} port {self._config.serving.monitor_port}"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address of this machine; raise OSError where that is impossible."""
    family, kind, protocol, _, place = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def address(listener: socket.socket) -> str:
    """Return the URL under which a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def most_connections() -> int:
    """Return how many connections may be open: the daemon needs descriptors for its own files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, soft // 2)
