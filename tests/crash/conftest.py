"""Where the crash tests of the suite get their nurseries: the same, for all tests of a module."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.crash.strike import Range, open_range


@pytest.fixture(scope="session")
def strace() -> None:
    """Skip where processes cannot be traced; on the machine that judges changes they must be."""
    if shutil.which("strace") is None:
        reason = "strace is missing; install it with: make test-tools"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def nurseries(strace: None) -> Iterator[Range]:
    """Nurseries with the stub worker."""
    with open_range() as made:
        yield made
