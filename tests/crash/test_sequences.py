"""Random orders of what people and machines do to a daemon; `make crash` runs many more."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.crash import sequences
from tests.crash.forked_daemon import ROOT

WITHOUT_THE_CHECK_FOR_DUPLICATES = """
import sys
from tests.crash import sequences
from training.claims import Claims
Claims._twin = lambda self, sha256: None
sys.exit(sequences.main(["3", "1"]))
"""


def test_whatever_is_done_in_whatever_order_no_file_is_lost_or_trained_twice() -> None:
    tally = sequences.run(6, seed=1)
    assert tally.failures == []
    assert tally.sequences >= 6


def test_a_daemon_that_forgets_what_it_has_trained_is_caught() -> None:
    command = [sys.executable, "-c", WITHOUT_THE_CHECK_FOR_DUPLICATES]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(finished.stdout)["double"] > 0
