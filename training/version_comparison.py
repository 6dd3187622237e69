"""Two models on the same items, side by side: scores, paired tests, and which of them is better.

What counts is what counts for promotion: the loss of the chosen answer of a pair is shown and is no test, nor
is the loss of the words that a suite expects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.comparison import holm, mcnemar_exact, paired_bootstrap
from evaluation.items import ItemResult
from training.version_report import Document, SliceKind, SliceScore, score

Winner = Literal["a", "b", "no difference", "each somewhere"]


@dataclass(frozen=True)
class Answered:
    """What two models made of one suite or held-out slice."""

    name: str
    kind: SliceKind
    a: Sequence[ItemResult]
    b: Sequence[ItemResult]


class Pair(Document):
    """What both models made of one item."""

    item_id: str
    expected: str | None
    """None of a passage, which nobody is asked for."""
    a: ItemResult
    b: ItemResult


class PartComparison(Document):
    """Two models on one suite or held-out slice; differences are of b - a, null is what was not measured."""

    name: str
    records: int
    a: SliceScore
    b: SliceScore
    accuracy_difference: float | None = None
    gained: int | None = None
    """Items that only b got right."""
    lost: int | None = None
    """Items that only a got right."""
    mcnemar_p: float | None = None
    """Exact, two-sided."""
    loss_difference: float | None = None
    loss_interval: tuple[float, float] | None = None
    loss_p: float | None = None
    """Two-sided, of the paired bootstrap of losses."""
    loss_decides: bool = False
    """Whether the loss counts for the winner: that of held-out records does, unless they are pairs."""
    winner: Winner = "no difference"


class Comparison(Document):
    """Two models on everything they were asked."""

    schema_version: int = 1
    a: str
    b: str
    confidence: float
    parts: tuple[PartComparison, ...]
    winner: Winner
    """Better on some part and worse on none, all parts corrected for being many."""
    disagreements: tuple[Pair, ...] = ()
    """Items that one of the two got right."""


def compare(
    a: str,
    b: str,
    answered: Sequence[Answered],
    *,
    confidence: float,
    seed: int,
) -> Comparison:
    """Compare what two models made of the same items, part by part."""
    parts, pairs = [], []
    for part in answered:
        together = list(_pairs(part.a, part.b))
        parts.append(_compare_part(part.name, part.kind, together, confidence, seed))
        pairs += together
    judged = _judged(parts, 1 - confidence)
    winners = {part.winner for part in judged} - {"no difference"}
    return Comparison(
        a=a,
        b=b,
        confidence=confidence,
        parts=judged,
        winner="no difference" if not winners else winners.pop() if len(winners) == 1 else "each somewhere",
        disagreements=tuple(pair for pair in pairs if _is_disputed(pair)),
    )


def _pairs(of_a: Sequence[ItemResult], of_b: Sequence[ItemResult]) -> Iterator[Pair]:
    known = {result.item_id: result for result in of_b}
    for one in of_a:
        if (other := known.get(one.item_id)) is not None:
            yield Pair(item_id=one.item_id, expected=one.expected, a=one, b=other)


def _is_disputed(pair: Pair) -> bool:
    return None not in (pair.a.is_right, pair.b.is_right) and pair.a.is_right != pair.b.is_right


def _compare_part(
    name: str, kind: SliceKind, pairs: Sequence[Pair], confidence: float, seed: int
) -> PartComparison:
    part = PartComparison(
        name=name,
        records=len(pairs),
        a=score([pair.a for pair in pairs], confidence),
        b=score([pair.b for pair in pairs], confidence),
    )
    fields: dict[str, object] = {}
    graded = [
        (pair.a.is_right, pair.b.is_right)
        for pair in pairs
        if pair.a.is_right is not None and pair.b.is_right is not None
    ]
    if graded:
        found = mcnemar_exact([one for one, _ in graded], [other for _, other in graded])
        fields |= {"gained": found.gained, "lost": found.lost, "mcnemar_p": found.p_value}
        fields["accuracy_difference"] = (found.gained - found.lost) / len(graded)
    losses = [
        (pair.a.loss, pair.b.loss) for pair in pairs if pair.a.loss is not None and pair.b.loss is not None
    ]
    if losses:
        change = paired_bootstrap(
            *([one for one, _ in losses], [other for _, other in losses]), confidence=confidence, seed=seed
        )
        fields |= {"loss_difference": change.mean, "loss_interval": change.interval}
        fields["loss_p"] = change.p_value
        are_pairs = any(pair.a.prefers_expected is not None for pair in pairs)
        fields["loss_decides"] = kind == "held_out" and not are_pairs
    return part.model_copy(update=fields)


def _judged(parts: Sequence[PartComparison], alpha: float) -> tuple[PartComparison, ...]:
    """Return the parts with their winners, all tests of all parts corrected for being many."""
    tests = [
        (number, p_value, is_b_better)
        for number, part in enumerate(parts)
        for p_value, is_b_better in (
            (part.mcnemar_p, (part.accuracy_difference or 0) > 0),
            (part.loss_p if part.loss_decides else None, (part.loss_difference or 0) < 0),
        )
        if p_value is not None
    ]
    adjusted = holm([p_value for _, p_value, _ in tests])
    better: dict[int, set[bool]] = {}
    for (number, _, is_b_better), p_value in zip(tests, adjusted, strict=True):
        if p_value < alpha:
            better.setdefault(number, set()).add(is_b_better)
    return tuple(
        part.model_copy(update={"winner": _winner(better.get(number, set()))})
        for number, part in enumerate(parts)
    )


def _winner(b_is_better: set[bool]) -> Winner:
    if not b_is_better:
        return "no difference"
    if len(b_is_better) == 2:
        return "each somewhere"
    return "b" if True in b_is_better else "a"
