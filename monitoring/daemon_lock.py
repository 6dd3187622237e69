"""One daemon for a base folder: a lock that dies with its holder, and the pid of who holds it."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import filelock

from config import Paths
from errors import AlreadyRunning, UsageError

logger = logging.getLogger(__name__)

WITHOUT_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL})
"""What a file system says that has no such locks."""


@contextlib.contextmanager
def only_daemon(paths: Paths) -> Iterator[None]:
    """Hold the lock of a base folder; raise AlreadyRunning with the pid of the daemon that has it.

    The lock is the kernel's, so it dies with its holder and the file that stays behind means nothing. Raises
    UsageError on a file system without such locks: one daemon alone could not be told from two.
    """
    lock = filelock.FileLock(paths.daemon_lock, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        pid = paths.daemon_lock.read_text(encoding="ascii").strip() or "unknown"
        raise AlreadyRunning(
            f"{paths.base}: a daemon with pid {pid} runs here; end it first, for instance with: trainbox stop"
        ) from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        raise UsageError(
            f"{paths.daemon_lock}: cannot be locked ({error.strerror}); put the base folder on a file system "
            "with flock, for instance a local disk"
        ) from error
    try:
        _name_holder(paths.daemon_lock, f"{os.getpid()}\n")
        yield
    finally:
        _name_holder(paths.daemon_lock, "")
        lock.release()


def _name_holder(path: Path, text: str) -> None:
    """Change the file's content and keep its inode, which is what the lock is on.

    The pid is for messages only, so a full disk keeps nobody from starting.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, text.encode())
    except OSError as error:
        logger.warning("Could not write the pid into %s: %s", path, error.strerror)
    finally:
        os.close(descriptor)
