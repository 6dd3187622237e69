"""Whether exact match gets better from one evaluation of a run to the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import fmean

from monitoring.trends import Trend, judge

WINDOW = 3
TOLERANCE = 0.01
"""Change of the mean of three evaluations that is stable still; while there are fewer, `EARLY_TOLERANCE`."""
EARLY_TOLERANCE = 0.005

Matches = Sequence[bool | None]


class FixedEvalHistory:
    """Follows the answers of one run; where an evaluation had time for fewer, only those are compared."""

    def __init__(self) -> None:
        self._evaluations: deque[Matches] = deque(maxlen=2 * WINDOW)

    def observe(self, matches: Matches) -> None:
        """Take the answers of one evaluation, None for each that did not come whole."""
        if any(match is not None for match in matches):
            self._evaluations.append(matches)

    def trend(self) -> Trend:
        """Compare the last three evaluations with the three before, or the last two while there are fewer."""
        window, tolerance = (
            (WINDOW, TOLERANCE) if len(self._evaluations) == 2 * WINDOW else (1, EARLY_TOLERANCE)
        )
        compared = list(self._evaluations)[-2 * window :]
        if len(compared) < 2:
            return "insufficient_data"
        asked = min(map(len, compared))
        shares = [_share(matches[:asked]) for matches in compared]
        known = [share for share in shares if share is not None]
        if len(known) < len(shares):
            return "insufficient_data"
        change = fmean(known[window:]) - fmean(known[:window])
        # Rounded, since 0.55 - 0.54 is a little more than 0.01.
        return judge(round(change, 9), tolerance, lower_is_better=False)


def _share(matches: Matches) -> float | None:
    whole = [match for match in matches if match is not None]
    return fmean(whole) if whole else None
