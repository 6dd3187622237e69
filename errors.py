"""Every error of trainbox: one root, one class for each reaction.

A message says where, what was found, what was expected and what to do.
"""

from __future__ import annotations


class TrainboxError(Exception):
    """Root of all errors that trainbox raises on purpose."""


class UsageError(TrainboxError):
    """The command or its arguments cannot be carried out; tell the person and exit with 2."""


class ConfigError(UsageError):
    """A configuration key or value is wrong; the daemon does not start."""


class RecordRefused(TrainboxError):
    """One record cannot be used: it is set aside and the rest of its file goes on.

    `found` and `expected` are short phrases, `field` is a JSON-path-like name such as
    ``messages[1].content``, `remedy` says what a person can do.
    """

    def __init__(self, field: str, found: str, expected: str, remedy: str) -> None:
        super().__init__(f"{field}: found {found}, expected {expected}; {remedy}")
        self.field = field
        self.found = found
        self.expected = expected
        self.remedy = remedy


class FileRefused(TrainboxError):
    """A whole file cannot be used: it goes to ``inbox/rejected/`` with its report."""


class JobFailed(TrainboxError):
    """The job cannot go on: it is retried or goes to ``inbox/failed/``.

    `kind` is one lower-case word for the reason, for instance ``nan``, ``oom``, ``hang``, ``crash``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class EnvironmentNotReady(TrainboxError):
    """Disk, GPU or lock is not to be had now: wait and try again, no attempt is used up."""


class IntegrityError(TrainboxError):
    """Bytes on disk are not what their manifest says; the artefact must not be used."""


class AlreadyRunning(UsageError):
    """Another daemon holds the lock of this base folder."""
