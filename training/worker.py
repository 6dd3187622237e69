"""The worker process: one job, in a process that may be killed at any instant.

``python -m training.worker BASE_FOLDER EVENTS_FD DAEMON_PID`` imports what training needs, then reads from
stdin one line ``{"job_id": …}`` and after it commands. Events go to the pipe EVENTS_FD, logs to stderr. The
last event is the outcome; a worker that ends without one has crashed.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import filelock
import orjson

from config import Paths
from errors import EnvironmentNotReady, FileRefused, JobFailed, TrainboxError
from monitoring.events import EventWriter, OutcomeEvent, PhaseEvent
from training.daemon_link import DaemonLink
from training.guard import start_guard
from training.jobs import Job, JobStore

logger = logging.getLogger(__name__)

LOCK_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
ENVIRONMENT = {
    # One process, one GPU: transformers would spread a batch over all that it sees.
    "CUDA_VISIBLE_DEVICES": "0",
    # Freed memory of one length is found again for another.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # Threads that spin while they wait starve each other as soon as anything else runs on the machine: beside
    # other work a step is three to six times faster without, alone it is a few percent slower.
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


class Carrier(Protocol):
    """Carries out one job, as `training.run.Run` does."""

    def carry_out(self) -> OutcomeEvent: ...


MakeCarrier = Callable[[Paths, Job, DaemonLink], Carrier]


def import_run() -> MakeCarrier:
    """Do the slow imports and return what carries out a job."""
    from training.run import Run

    return Run


def main(arguments: list[str], load: Callable[[], MakeCarrier] = import_run) -> int:
    """Run the worker; return 0 once an outcome was sent, or when there was no job."""
    base, events_fd, daemon_pid = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    die_with_parent(daemon_pid)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    link = DaemonLink(EventWriter(events_fd))
    link.emit(PhaseEvent(phase="starting"))
    # While the daemon waits for the file to settle. What imports make is for good: to look through it for
    # garbage takes a fifth of their time, and half a second again whenever memory is cleared.
    gc.disable()
    make = load()
    gc.freeze()
    gc.enable()
    # Unbuffered: the thread that waits here must not hold a lock when the interpreter ends.
    commands = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # noqa: SIM115 - as long as the process
    line = commands.readline()
    if not line:
        return 0
    start_guard()
    link.listen(commands)
    link.start_heartbeat()
    link.emit(carry_out(Paths(base), orjson.loads(line)["job_id"], link, make))
    return 0


def carry_out(paths: Paths, job_id: str, link: DaemonLink, make: MakeCarrier | None = None) -> OutcomeEvent:
    """Run one job under the worker lock and turn every way it can end into an outcome."""
    make = make or import_run()
    lock = filelock.FileLock(paths.worker_lock, timeout=LOCK_SECONDS, fallback_to_soft=False)
    try:
        with lock:
            return make(paths, _find(paths, job_id), link).carry_out()
    except filelock.Timeout:
        return OutcomeEvent(outcome="waiting", kind="lock", message="another worker still runs here")
    except FileRefused as error:
        return OutcomeEvent(outcome="refused", message=str(error))
    except EnvironmentNotReady as error:
        return OutcomeEvent(outcome="waiting", kind="environment", message=str(error))
    except JobFailed as error:
        logger.error("The job failed (%s): %s", error.kind, error)
        return OutcomeEvent(outcome="failed", kind=error.kind, message=str(error))
    except TrainboxError as error:
        logger.error("The job cannot go on: %s", error)
        return OutcomeEvent(outcome="failed", kind=_kind(error), message=str(error))
    except Exception as error:
        logger.exception("The job ended by an error nobody foresaw")
        return _unforeseen(error)


def die_with_parent(daemon_pid: int) -> None:
    """Have the kernel kill this process when the daemon ends; exit when it has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != daemon_pid:
        sys.exit("the daemon that started this worker is gone")


def _find(paths: Paths, job_id: str) -> Job:
    job = JobStore(paths).get(job_id)
    if job is None:
        raise JobFailed("job", f"found no job {job_id!r} in {paths.runs}")
    return job


def _kind(error: TrainboxError) -> str:
    """Return the class of an error in one lower-case word: ConfigError becomes ``config``."""
    return type(error).__name__.removesuffix("Error").lower()


def _unforeseen(error: Exception) -> OutcomeEvent:
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return OutcomeEvent(outcome="waiting", kind="disk", message=message)
        return OutcomeEvent(outcome="failed", kind="error", message=message)
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return OutcomeEvent(outcome="failed", kind="oom", message=message)
    return OutcomeEvent(outcome="failed", kind="error", message=message)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    logging.shutdown()
    # All that matters is on the disk and said; torch would take seconds to take itself apart.
    os._exit(exit_code)
