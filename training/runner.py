"""One child process for a job: started, listened to, told to stop, and ended when it must be.

The runner knows processes and pipes. What an outcome means for the job is left to the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import orjson

from config import Paths, WorkerConfig
from monitoring.events import Event, OutcomeEvent, decode_event
from training.run_logs import RunLog

logger = logging.getLogger(__name__)

CODE_FOLDER = Path(__file__).resolve().parent.parent
WORKER_COMMAND = (sys.executable, "-P", "-m", "training.worker")
TICK_SECONDS = 0.2
"""Longest time between two looks at what a person wants."""
EXIT_SECONDS = 10.0
"""Time a worker has to end after its last event."""
STANDBY_SECONDS = 60.0
"""A worker kept ready for nothing is ended after so long."""
PIPE_SECONDS = 2.0
"""Time to read what a dead worker left in its pipes, should a stranger hold them open."""
TAIL_BYTES = 4096
MAX_LINE_BYTES = 1 << 20

Wish = Literal["pause", "stop", "skip", "kill"]
_OUTCOME_OF_WISH: Mapping[Wish, Literal["paused", "stopped", "skipped"]] = {
    "pause": "paused",
    "stop": "stopped",
    "skip": "skipped",
    "kill": "stopped",
}
CRASH_KINDS = frozenset({"crash", "oom", "killed", "hang", "silent", "garbage"})
"""Kinds of failure that may not happen again; the job is resumed from its last checkpoint."""


class Worker:
    """One worker process with its pipes; it leads a process group of its own."""

    def __init__(self, command: Sequence[str], paths: Paths, clock: Callable[[], float]) -> None:
        """Start the process; from the main thread only, since it dies with the thread that started it."""
        assert threading.current_thread() is threading.main_thread()
        self._clock = clock
        self._log = RunLog(paths.run_logs / "worker.log")
        self._log_lock = threading.Lock()
        self._tail = bytearray()
        self._told: set[Wish] = set()
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._heard_everything = False
        self._exited_at: float | None = None
        self.heard_at = clock()
        self.oom_kills_before = _oom_kills()
        events, events_of_worker = os.pipe()
        output, output_of_worker = os.pipe()
        try:
            self._process = subprocess.Popen(
                [*command, str(paths.base), str(events_of_worker), str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=output_of_worker,
                stderr=output_of_worker,
                pass_fds=(events_of_worker,),
                process_group=0,
                env=_environment(os.environ),
                bufsize=0,
            )
        except OSError:
            os.close(events)
            os.close(output)
            raise
        finally:
            os.close(events_of_worker)
            os.close(output_of_worker)
        self.pid = self._process.pid
        self._threads = [
            threading.Thread(target=self._read_events, args=(events,), daemon=True),
            threading.Thread(target=self._read_output, args=(output,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def assign(self, job_id: str, log_path: Path) -> None:
        """Give the waiting worker its job; what it prints goes to `log_path` from now on."""
        with self._log_lock:
            self._log = RunLog(log_path)
        self.heard_at = self._clock()
        self._send({"job_id": job_id})

    def tell(self, wish: Wish) -> None:
        """Pass on a wish, once."""
        if wish not in self._told:
            self._told.add(wish)
            self._send({"command": wish})

    def listen(self, timeout_seconds: float) -> list[bytes]:
        """Return the lines said since the last call, waiting a moment for the first one."""
        lines: list[bytes] = []
        try:
            line = self._lines.get(timeout=timeout_seconds)
            while line is not None:
                lines.append(line)
                line = self._lines.get_nowait()
            self._heard_everything = True
        except queue.Empty:
            pass
        return lines

    def has_ended(self) -> bool:
        """Tell whether the process has exited and all it said was heard."""
        if self.is_alive():
            return False
        self._kill_group()  # a child of it may still hold the pipes open
        if self._exited_at is None:
            self._exited_at = self._clock()
        return self._heard_everything or self._clock() - self._exited_at > PIPE_SECONDS

    def is_alive(self) -> bool:
        """Tell whether the process runs; it is not reaped, so that its group keeps its number."""
        if self._process.returncode is not None:
            return False
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def end(self, grace_seconds: float = 0.0) -> int:
        """Close its input, wait a moment, kill what is left of its group, and return the exit code."""
        with contextlib.suppress(BrokenPipeError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        deadline = time.monotonic() + grace_seconds
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        self._kill_group()
        code = self._process.wait()
        for thread in self._threads:
            thread.join(PIPE_SECONDS)
        return code

    def last_lines(self) -> str:
        """Return the end of what it printed."""
        with self._log_lock:
            return bytes(self._tail).decode(errors="replace").strip()

    def _send(self, message: Mapping[str, str]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone, which the supervision is about to see
            self._process.stdin.write(orjson.dumps(message) + b"\n")

    def _kill_group(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _read_events(self, descriptor: int) -> None:
        with open(descriptor, "rb") as pipe:
            while line := pipe.readline(MAX_LINE_BYTES):
                self.heard_at = self._clock()
                self._lines.put(line)
        self._lines.put(None)

    def _read_output(self, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                with self._log_lock:
                    self._tail = (self._tail + chunk)[-TAIL_BYTES:]
                    self._log.append(chunk)


class Runner:
    """Runs one job at a time, each in a process of its own, and keeps the next process ready."""

    def __init__(
        self,
        paths: Paths,
        config: WorkerConfig,
        command: Sequence[str] = WORKER_COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._config = config
        self._command = command
        self._clock = clock
        self._standby: Worker | None = None
        self._wanted_at = clock()
        self._is_standby_broken = False
        self.worker_pid: int | None = None
        """The process that carries a job out now."""

    def keep_ready(self, is_wanted: bool) -> None:
        """Hold one worker ready while a job is to be expected, and let it go when none came for a while."""
        if self._standby is not None and not self._standby.is_alive():
            code = self._standby.end()
            logger.warning(
                "The waiting worker ended by itself (exit code %d): %s", code, self._standby.last_lines()
            )
            self._standby, self._is_standby_broken = None, True
        if is_wanted and self._config.preload:
            self._wanted_at = self._clock()
            if self._standby is None and not self._is_standby_broken:
                self._standby = self._start()
        elif self._clock() - self._wanted_at > STANDBY_SECONDS:
            self.release()

    def release(self) -> None:
        """End the worker that is kept ready."""
        if self._standby is not None:
            self._standby.end()
            self._standby = None

    def run(
        self, job_id: str, on_event: Callable[[bytes, Event], None], beat: Callable[[], Wish | None]
    ) -> OutcomeEvent:
        """Run one job to its outcome; a crash, a hang and an ignored stop become outcomes as well.

        `on_event` gets each line with its event; `beat` is called several times a second and says what is
        wanted of the worker now.
        """
        worker = self._take()
        self.worker_pid = worker.pid
        logger.info("Started job %s in process %d", job_id, worker.pid)
        worker.assign(job_id, self._paths.run_logs / f"{job_id}.log")
        grace_seconds = 0.0
        try:
            outcome = self._supervise(worker, on_event, beat)
            grace_seconds = EXIT_SECONDS
            return outcome
        finally:
            worker.end(grace_seconds)
            self.worker_pid = None

    def _take(self) -> Worker:
        standby, self._standby = self._standby, None
        self._is_standby_broken = False
        if standby is not None and standby.is_alive():
            return standby
        if standby is not None:
            standby.end()
        return self._start()

    def _start(self) -> Worker:
        return Worker(self._command, self._paths, self._clock)

    def _supervise(
        self, worker: Worker, on_event: Callable[[bytes, Event], None], beat: Callable[[], Wish | None]
    ) -> OutcomeEvent:
        told: Wish | None = None
        told_at = 0.0
        last_line, last_event = b"", None
        while True:
            for line in worker.listen(TICK_SECONDS):
                last_line, last_event = line, _decode(line)
                if last_event is not None:
                    on_event(line, last_event)
                if isinstance(last_event, OutcomeEvent):
                    return last_event
            if worker.has_ended():
                return _explain_death(worker, garbage=last_line if last_event is None else b"")
            if self._clock() - worker.heard_at > self._config.hang_seconds:
                worker.end()
                silence = f"said nothing for {self._config.hang_seconds:g} s (worker.hang_seconds)"
                return OutcomeEvent(outcome="failed", kind="hang", message=f"{silence} and was killed")
            wish = beat()
            if wish is not None:
                told, told_at = wish, told_at if told else self._clock()
                if wish != "kill":
                    worker.tell(wish)
            if told == "kill" or (told and self._clock() - told_at > self._config.stop_grace_seconds):
                worker.end()
                logger.warning("Killed the worker: it had not ended after %s", told)
                return OutcomeEvent(outcome=_OUTCOME_OF_WISH[told], message="ended without a last checkpoint")


def _decode(line: bytes) -> Event | None:
    try:
        return decode_event(line)
    except ValueError as error:
        logger.warning("The worker said what is no event, %.200r: %s", line, error)
        return None


def _explain_death(worker: Worker, garbage: bytes) -> OutcomeEvent:
    """Say in one word and a message why a worker ended without an outcome.

    `garbage` is its last line where that is no event.
    """
    code = worker.end()
    if code == -signal.SIGKILL and _oom_kills() > worker.oom_kills_before:
        kind, reason = "oom", "was killed by the kernel because memory ran out"
    elif code == -signal.SIGKILL:
        kind, reason = "killed", "was killed from outside"
    elif code < 0:
        kind, reason = "crash", f"died of {signal.Signals(-code).name}"
    elif garbage:
        kind, reason = (
            "garbage",
            f"ended with exit code {code} after saying what is no event, {garbage!r:.200}",
        )
    elif code == 0:
        kind, reason = "silent", "ended with exit code 0 and no outcome"
    else:
        kind, reason = "crash", f"ended with exit code {code} and no outcome"
    last_lines = worker.last_lines()
    message = f"the worker {reason}" + (f"; it last said:\n{last_lines}" if last_lines else "")
    return OutcomeEvent(outcome="failed", kind=kind, message=message)


def _oom_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since boot."""
    for line in Path("/proc/vmstat").read_bytes().splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return 0


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's environment: it finds our modules, and systemd's socket is none of its business."""
    ours = {name: value for name, value in environment.items() if name not in _OF_SYSTEMD}
    ours["PYTHONPATH"] = os.pathsep.join([*filter(None, [ours.get("PYTHONPATH")]), str(CODE_FOLDER)])
    return ours


_OF_SYSTEMD = frozenset({"NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"})
