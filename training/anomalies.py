"""What in a run is odd enough to keep the answers of that moment.

Pure: fed with losses, evaluations and answers. Alerts are another matter: they tell a person to act, this
only says where to look later.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Literal

from training.held_out import AnsweredExample

Kind = Literal["loss_rise", "loss_outlier", "new_best", "accuracy_drop", "right_but_unsure", "wrong_but_sure"]

WINDOW, LEAST = 50, 20
"""Losses that are the recent ones, and how many it takes to judge by them."""
LOSS_RISE = 0.3
OUTLIER_DEVIATIONS = 3.0
NEW_BEST = 0.02
ACCURACY_DROP = 0.1
HIGH_LOSS = 3.0
LOW_LOSS = 0.1
"""Nats a token at which the model is all but certain of the expected answer."""


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What was odd, by which number, and what that was compared with."""

    kind: Kind
    value: float
    reference: float
    example_id: str | None = None


class Anomalies:
    """Follows one run; a value is never part of what it is compared with."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._best: float | None = None
        self._accuracy: float | None = None

    def of_step(self, loss: float) -> Anomaly | None:
        """Judge the loss of a step against the mean of those before it."""
        before = list(self._losses)
        self._losses.append(loss)
        if len(before) < LEAST:
            return None
        mean, deviation = fmean(before), pstdev(before)
        if loss > (1 + LOSS_RISE) * mean:
            return Anomaly("loss_rise", loss, mean)
        if deviation > 0 and abs(loss - mean) > OUTLIER_DEVIATIONS * deviation:
            return Anomaly("loss_outlier", loss, mean)
        return None

    def of_evaluation(self, eval_loss: float) -> Anomaly | None:
        """Tell whether a held-out loss is clearly the lowest so far; the first is none."""
        before, self._best = self._best, eval_loss if self._best is None else min(self._best, eval_loss)
        if before is None or eval_loss >= (1 - NEW_BEST) * before:
            return None
        return Anomaly("new_best", eval_loss, before)

    def of_answers(self, answers: Sequence[AnsweredExample]) -> Anomaly | None:
        """Judge the answers to the same prompts as last time; one that did not come whole is none."""
        answers = [answer for answer in answers if answer.error is None]
        if not answers:
            return None
        accuracy = fmean(answer.matches for answer in answers)
        before, self._accuracy = self._accuracy, accuracy
        # Rounded, since 0.55 - 0.45 is a little less than 0.1.
        if before is not None and round(len(answers) * (before - accuracy), 6) >= ACCURACY_DROP * len(
            answers
        ):
            return Anomaly("accuracy_drop", accuracy, before)
        return next((odd for odd in map(_of_answer, answers) if odd is not None), None)


def _of_answer(answer: AnsweredExample) -> Anomaly | None:
    if answer.loss is None or not math.isfinite(answer.loss):
        return None
    if answer.matches and answer.loss > HIGH_LOSS:
        return Anomaly("right_but_unsure", answer.loss, HIGH_LOSS, answer.example_id)
    if not answer.matches and answer.loss < LOW_LOSS:
        return Anomaly("wrong_but_sure", answer.loss, LOW_LOSS, answer.example_id)
    return None
