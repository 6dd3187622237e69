"""Whether an answer is right: what is compared, and how."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

GraderName = Literal["exact"]


class GraderSpec(BaseModel):
    """Which grader judges a record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: GraderName = "exact"


class Grade(BaseModel):
    """How right one answer is."""

    model_config = ConfigDict(frozen=True)

    correct: bool
    score: float
    """From 0 to 1: 1 is right, between them is partly right."""


def grade(spec: GraderSpec, expected: str, answer: str) -> Grade:
    """Judge an answer; any string is a valid answer."""
    correct = " ".join(expected.split()).casefold() == " ".join(answer.split()).casefold()
    return Grade(correct=correct, score=float(correct))


def token_f1(expected: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall over words, from 0 to 1."""
    gold, given = Counter(expected.casefold().split()), Counter(answer.casefold().split())
    if not gold or not given:
        return float(gold == given)
    shared = sum((gold & given).values())
    return 2 * shared / (gold.total() + given.total())
