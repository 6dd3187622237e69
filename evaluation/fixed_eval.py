"""Three numbers of the same held-out records at each evaluation of a run: exact match, loss, calibration.

All are pure: losses, logits and answers come from whoever has the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

BINS = 10
_ROWS_AT_ONCE = 256


class Calibration:
    """Expected calibration error of next-token predictions, over trained tokens only.

    A prediction is the most likely token; its confidence is the probability of that token. Predictions are
    sorted by confidence into ten equal bins, the last of which holds certainty itself (arXiv:1706.04599).
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(3, BINS, dtype=torch.float64)
        """For each bin: predictions, those that were right, and the sum of confidences."""

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Take the predictions of some tokens; `logits` are ``(N, vocabulary)``, `targets` ``(N,)``."""
        self._counts = self._counts.to(logits.device)
        parts = torch.split(logits, _ROWS_AT_ONCE), torch.split(targets, _ROWS_AT_ONCE)
        for some, theirs in zip(*parts, strict=True):
            best, tokens = some.max(dim=-1)
            confidence = (best - some.logsumexp(dim=-1)).exp().double()
            bins = (confidence * BINS).long().clamp(max=BINS - 1)
            seen = torch.stack([torch.ones_like(confidence), (tokens == theirs).double(), confidence])
            self._counts += seen @ functional.one_hot(bins, BINS).double()

    def merge(self, other: Calibration) -> None:
        """Take what another one has seen."""
        self._counts = self._counts.to(other._counts.device) + other._counts

    @property
    def tokens(self) -> int:
        """How many predictions were seen."""
        return int(self._counts[0].sum())

    @property
    def error(self) -> float | None:
        """Mean distance of confidence and accuracy, from 0 to 1; None where nothing was seen."""
        if not self.tokens:
            return None
        _, right, confidence = self._counts
        return float((right - confidence).abs().sum()) / self.tokens


def exact_match(matches: Sequence[bool | None]) -> float | None:
    """Return the share of right answers, from 0 to 1; None stands for an answer that never came whole.

    Those count neither as right nor as wrong; where there is no other, nothing is known.
    """
    whole = [match for match in matches if match is not None]
    return sum(whole) / len(whole) if whole else None
