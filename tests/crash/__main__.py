"""All crash tests in full: ``python -m tests.crash [PART...]``, ending with one line of counts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tests.crash import bad_inputs, cuts, faults, kills, planted, real, sequences
from tests.crash.strike import Say
from tests.crash.tally import Tally

SEQUENCES = 200
PARTS: Mapping[str, Callable[[Say], Tally]] = {
    "kills": kills.run,
    "faults": faults.run,
    "planted": planted.run,
    "real": real.run,
    "cuts": cuts.run,
    "sequences": lambda say: sequences.run(SEQUENCES, seed=1),
    "bad_inputs": lambda say: bad_inputs.run(),
}


def main(names: Sequence[str]) -> int:
    """Run the parts that are named, or all; return 1 when something was violated or a bug not caught."""
    unknown = sorted(set(names) - PARTS.keys())
    if unknown:
        sys.stderr.write(f"found {', '.join(unknown)}, expected some of: {', '.join(PARTS)}\n")
        return 2
    os.environ.setdefault("TRAINBOX_SERVING__MONITOR", "false")  # its calls are no part of a job's life
    begun_at = time.monotonic()

    def say(line: str) -> None:
        sys.stderr.write(f"{time.monotonic() - begun_at:6.0f} s  {line}\n")

    total = Tally()
    for name in names or PARTS:
        part = PARTS[name](say)
        say(f"{name}: {part}")
        total += part
    for failure in total.failures:
        say(f"FAILED {failure}")
    sys.stdout.write(f"{total}\n")
    return int(bool(total.failures) or total.planted_bugs_caught < total.planted_bugs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
