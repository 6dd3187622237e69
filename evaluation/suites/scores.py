"""How well a model did on a suite: shares with their intervals, by level and over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from evaluation.intervals import wilson
from evaluation.items import ItemResult
from evaluation.syllo.puzzle import Puzzle
from evaluation.syllo.verification import verify

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Score:
    """The results of the items of one level, or of all."""

    level: str | None
    """None stands for all items where `is_overall`, else for those without a level."""
    is_overall: bool
    items: int
    correct: int
    mean_score: float
    """Mean of the graders' scores: partly right answers count for a part. Of puzzles: the share of words."""
    format_ok: int | None
    """Answers in the form that was asked for; None where the grader knows of no form."""
    cut_off: int
    """Answers that were ended by a limit of tokens or seconds."""

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.correct / self.items

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        found = wilson(self.correct, self.items, CONFIDENCE)
        assert found is not None, "a score is of one item at least"
        return found

    @property
    def format_rate(self) -> float | None:
        """Share of answers in the form that was asked for."""
        return None if self.format_ok is None else self.format_ok / self.items


def scores(results: Sequence[ItemResult]) -> list[Score]:
    """Return the score of each level, in the order they first come in, and that of all items last.

    Passages, which nobody was asked for, count nowhere; nor do answers that time did not suffice for, but as
    cut off.
    """
    results = [result for result in results if result.grader is not None]
    levels = dict.fromkeys(result.level for result in results)
    by_level = [_score([one for one in results if one.level == level], level) for level in levels]
    overall = _score(results, None, is_overall=True)
    return [score for score in (*by_level, overall) if score is not None]


def _score(results: Sequence[ItemResult], level: str | None, *, is_overall: bool = False) -> Score | None:
    """Return the score of what was judged; None where nothing was."""
    judged = [result for result in results if result.correct is not None]
    if not judged:
        return None
    forms = [form for form in map(_has_form, judged) if form is not None]
    return Score(
        level=level,
        is_overall=is_overall,
        items=len(judged),
        correct=sum(result.correct is True for result in judged),
        mean_score=fmean(result.score or 0.0 for result in judged),
        format_ok=sum(forms) if len(forms) == len(judged) else None,
        cut_off=sum(result.finish_reason in ("length", "time") for result in results),
    )


def _has_form(result: ItemResult) -> bool | None:
    """Tell whether an answer keeps to the form of a puzzle; None for what is no puzzle."""
    if result.grader != "syllo" or result.answer is None or result.expected is None:
        return None
    try:
        puzzle = Puzzle.from_answer(result.expected)
    except ValueError:
        return None
    return verify(puzzle, result.answer).format_ok
