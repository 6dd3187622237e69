"""The crash tests find the bugs they are there for."""

from __future__ import annotations

import pytest

from tests.crash.planted import CAUGHT_BY_KILLS, catch
from tests.crash.strike import Range


@pytest.mark.parametrize("bug", CAUGHT_BY_KILLS)
def test_a_planted_bug_is_caught(nurseries: Range, bug: str) -> None:
    assert catch(nurseries, bug, lambda line: None) is not None
