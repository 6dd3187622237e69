"""One systemd for all tests of this room, and a base folder with a unit for each."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.systemd.machine import Machine, Unit, what_is_missing


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A booted systemd; where there can be none the tests are skipped, but fail in continuous integration."""
    reason = what_is_missing()
    if reason is not None and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if reason is not None:
        pytest.skip(reason)
    booted = Machine(tmp_path_factory.mktemp("systemd"))
    yield booted
    booted.shut_down()


@pytest.fixture
def unit(machine: Machine) -> Iterator[Unit]:
    """A base folder with a system unit made by the command, not yet started."""
    made = Unit(machine, "system")
    yield made
    made.remove()


@pytest.fixture
def inference_unit(machine: Machine) -> Iterator[Unit]:
    """The same for the inference server."""
    made = Unit(machine, "system", "--inference")
    yield made
    made.remove()


@pytest.fixture
def user_unit(machine: Machine) -> Iterator[Unit]:
    """The same for a user's own systemd."""
    machine.start_user_manager()
    made = Unit(machine, "user")
    yield made
    made.remove()
