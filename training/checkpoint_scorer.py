"""Which checkpoint of a run is best: the published score, and what follows from it.

The standard library only, so that this one file can be copied to another machine and used there. A score
is made once, when a checkpoint is evaluated, and stored; whoever asks later compares stored scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any, Literal

Selection = Literal["score", "robust", "eval_loss"]

SMALLEST_LOSS = 0.001
"""What a gap is divided by at least."""
PERPLEXITY_CAP = 20.0
NEAR_TIE = 0.01
"""Share of the best rank within which two count as equal where the noise of the loss is not known."""


@dataclass(frozen=True, slots=True)
class ScoreWeights:
    """How much each term of the score counts."""

    eval_loss: float = 0.5
    gap: float = 0.3
    perplexity: float = 0.1
    improvement: float = 0.1


PUBLISHED_WEIGHTS = ScoreWeights()


@dataclass(frozen=True, slots=True)
class ScoreParts:
    """The terms of a score and their sum; lower is better."""

    eval_loss: float | None
    gap: float | None
    perplexity: float | None
    improvement: float | None
    """Minus the weight after an improvement, else 0."""
    total: float
    """Infinite where there is nothing to score."""
    reason: str | None = None
    """Why `total` is infinite."""


def calculate_checkpoint_score(
    checkpoint_data: Mapping[str, Any], weights: ScoreWeights = PUBLISHED_WEIGHTS
) -> float:
    """Return the score of a checkpoint, lower is better; infinite when it cannot be scored.

    ``checkpoint_data`` holds ``eval_loss``, ``train_loss`` and ``epochs_without_improvement`` (1 when
    missing). With e and t for the losses the score is ::

        0.5 e  +  0.3 |t - e| / max(|e|, 0.001)  +  0.1 min(exp(e) / 20, 1)  -  0.1 if it was improving

    - ``eval_loss`` missing, None, NaN, infinite or no number: infinite. It is never NaN, so scores sort.
    - ``train_loss`` missing or None: no gap term. NaN, infinite or no number: infinite, since a model that
      trains on such a loss is broken. 0.0 is a loss like any other.
    - A negative ``eval_loss`` (no cross-entropy, but an objective may be one) is compared with its own
      size; the published form divides by 0.001 there.
    - Large losses: the exponential is capped before it can overflow; a sum beyond all numbers is infinite.
    - ``epochs_without_improvement``: only whether it is 0 counts.
    """
    return score_parts(checkpoint_data, weights).total


def score_parts(checkpoint_data: Mapping[str, Any], weights: ScoreWeights = PUBLISHED_WEIGHTS) -> ScoreParts:
    """Return the terms of `calculate_checkpoint_score`, or the reason why there are none."""
    eval_loss = checkpoint_data.get("eval_loss")
    train_loss = checkpoint_data.get("train_loss")
    evaluated = _finite(eval_loss)
    if evaluated is None:
        return _unscored(f"eval_loss is {_shown(eval_loss)}, expected a finite number")
    trained = _finite(train_loss)
    if trained is None and train_loss is not None:
        return _unscored(f"train_loss is {_shown(train_loss)}, expected a finite number or none")
    is_improving = checkpoint_data.get("epochs_without_improvement", 1) == 0
    gap = 0.0 if trained is None else abs(trained - evaluated) / max(abs(evaluated), SMALLEST_LOSS)
    if math.isinf(gap):
        return _unscored("the gap between the losses is beyond all numbers")
    loss_term = weights.eval_loss * evaluated
    gap_term = weights.gap * gap
    perplexity_term = weights.perplexity * perplexity_share(evaluated)
    bonus = -weights.improvement if is_improving else 0.0
    total = loss_term + gap_term + perplexity_term + bonus
    if not math.isfinite(total):
        return _unscored("the sum of the terms is beyond all numbers")
    return ScoreParts(loss_term, gap_term, perplexity_term, bonus, total)


def perplexity_share(eval_loss: float) -> float:
    """Return the perplexity as a share of 20, at most 1."""
    return min(math.exp(min(eval_loss, math.log(PERPLEXITY_CAP))) / PERPLEXITY_CAP, 1.0)


@dataclass(frozen=True, slots=True)
class ScoredCheckpoint:
    """One evaluation with its score: what is stored beside the checkpoint and never computed again."""

    step: int
    eval_loss: float | None
    train_loss: float | None
    """Mean over the tokens trained since the evaluation before."""
    epochs_without_improvement: int
    """Evaluations in a row that did not beat the one just before them; 0 when this one did."""
    parts: ScoreParts
    epoch: float | None = None
    eval_standard_error: float | None = None
    """Of `eval_loss`, in its unit; None where only the mean is known."""
    compared_with: float | None = None
    """The last finite loss before this one; with it the next evaluation can be judged after a restart."""
    weights: ScoreWeights = PUBLISHED_WEIGHTS

    @property
    def score(self) -> float:
        return self.parts.total

    @property
    def signed_gap(self) -> float | None:
        """`eval_loss` minus `train_loss`: positive where the model knows its training data better."""
        if self.eval_loss is None or self.train_loss is None:
            return None
        return self.eval_loss - self.train_loss

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold; an infinite score becomes null, with its reason."""
        parts = asdict(self.parts)
        reason = parts.pop("reason")
        total = parts.pop("total")
        document = asdict(self)
        document["parts"] = parts
        return {
            "schema_version": 1,
            **document,
            "score": total if math.isfinite(total) else None,
            "reason": reason,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ScoredCheckpoint:
        """Return what `to_json` was given, the score as stored and not computed again."""
        score = document["score"]
        parts = ScoreParts(
            **document["parts"], total=math.inf if score is None else score, reason=document["reason"]
        )
        names = ("step", "eval_loss", "train_loss", "epochs_without_improvement")
        more = ("epoch", "eval_standard_error", "compared_with")
        return cls(
            **{name: document[name] for name in (*names, *more)},
            parts=parts,
            weights=ScoreWeights(**document["weights"]),
        )


class CheckpointHistory:
    """The evaluations of one run in order; scores each of them once, when it comes.

    Whether an evaluation improved is decided first, by comparing its loss with the one just before. The
    first of a run counts as an improvement, as in the published tables.
    """

    def __init__(
        self, scored: Iterable[ScoredCheckpoint] = (), weights: ScoreWeights = PUBLISHED_WEIGHTS
    ) -> None:
        """Go on from what was `scored` before; the newest of them is enough to score the next one."""
        self._weights = weights
        self._scored = {checkpoint.step: checkpoint for checkpoint in scored}

    @property
    def scored(self) -> list[ScoredCheckpoint]:
        """All evaluations by step."""
        return [self._scored[step] for step in sorted(self._scored)]

    def add(
        self,
        step: int,
        eval_loss: float | None,
        train_loss: float | None = None,
        *,
        epoch: float | None = None,
        eval_standard_error: float | None = None,
    ) -> ScoredCheckpoint:
        """Score the evaluation at `step`; one that was scored before keeps its score.

        Losses that are not finite leave an infinite score and are kept as None. Raises ValueError when
        `step` lies before one that is scored, since that score was made without it.
        """
        if step in self._scored:
            return self._scored[step]
        before = self.scored[-1] if self._scored else None
        if before is not None and step < before.step:
            raise ValueError(f"step {step} comes after step {before.step} was scored")
        without, compared_with = self._progress(before, _finite(eval_loss))
        data = {
            "eval_loss": eval_loss,
            "train_loss": train_loss,
            "epochs_without_improvement": without,
        }
        scored = ScoredCheckpoint(
            step=step,
            eval_loss=_finite(eval_loss),
            train_loss=_finite(train_loss),
            epochs_without_improvement=without,
            parts=score_parts(data, self._weights),
            epoch=epoch,
            eval_standard_error=_finite(eval_standard_error),
            compared_with=compared_with,
            weights=self._weights,
        )
        self._scored[step] = scored
        return scored

    def best(self, selection: Selection = "score") -> ScoredCheckpoint | None:
        """Return the best evaluation so far."""
        return choose_best(self._scored.values(), selection)

    @staticmethod
    def _progress(before: ScoredCheckpoint | None, loss: float | None) -> tuple[int, float | None]:
        """Return the evaluations without improvement, this one included, and the loss it was held against."""
        if before is None:
            return (1 if loss is None else 0), None
        last = before.compared_with if before.eval_loss is None else before.eval_loss
        has_improved = loss is not None and (last is None or loss < last)
        return (0 if has_improved else before.epochs_without_improvement + 1), last


def history_from_log(
    entries: Iterable[Mapping[str, Any]], weights: ScoreWeights = PUBLISHED_WEIGHTS
) -> CheckpointHistory:
    """Score a run from the ``log_history`` of its trainer_state.json, by the same rule as while it ran.

    Training losses and evaluations are separate entries there. The training loss of an evaluation is the
    mean of those logged since the evaluation before, or the last one when there is none; the run average
    ``train_loss`` is never taken for it.
    """
    history = CheckpointHistory(weights=weights)
    window: list[float] = []
    last: float | None = None
    for entry in sorted(entries, key=lambda entry: (entry.get("step", 0), "eval_loss" in entry)):
        if "eval_loss" in entry:
            train_loss = math.fsum(window) / len(window) if window else last
            history.add(entry["step"], entry["eval_loss"], train_loss, epoch=entry.get("epoch"))
            window.clear()
        elif (loss := _finite(entry.get("loss"))) is not None:
            window.append(loss)
            last = loss
    return history


def choose_best(
    scored: Iterable[ScoredCheckpoint], selection: Selection = "score"
) -> ScoredCheckpoint | None:
    """Return the best of the evaluations, or None when none of them could be scored.

    ``score``: the lowest stored score; of equals the lower evaluation loss, then the earlier step.
    ``eval_loss``: the lowest evaluation loss; of equals the earlier step.
    ``robust``: the lowest `robust_rank`; those within a standard error of it count as equal, and of them
    an improving one wins, then the lower rank, then the earlier step.
    """
    candidates = [checkpoint for checkpoint in scored if math.isfinite(checkpoint.score)]
    if not candidates:
        return None
    if selection == "robust":
        return _most_robust(candidates)
    if selection == "eval_loss":
        return min(candidates, key=lambda one: (_loss(one), one.step))
    return min(candidates, key=lambda one: (one.score, _loss(one), one.step))


def robust_rank(checkpoint: ScoredCheckpoint) -> float:
    """Return the score without what misleads it, lower is better.

    No bonus; only a training loss *below* the evaluation loss counts as a gap, by as much as exceeds the
    standard error of the evaluation; and the gap term never exceeds the loss term, since a relative gap
    grows without limit as a loss gets small.
    """
    loss, weights = _loss(checkpoint), checkpoint.weights
    gap = max(0.0, (checkpoint.signed_gap or 0.0) - (checkpoint.eval_standard_error or 0.0))
    loss_term = weights.eval_loss * loss
    gap_term = min(weights.gap * gap / max(abs(loss), SMALLEST_LOSS), abs(loss_term))
    return loss_term + gap_term + weights.perplexity * perplexity_share(loss)


def _most_robust(candidates: list[ScoredCheckpoint]) -> ScoredCheckpoint:
    ranks = {one.step: robust_rank(one) for one in candidates}
    leader = min(candidates, key=lambda one: (ranks[one.step], one.step))
    lead = ranks[leader.step]
    noise = leader.eval_standard_error
    tolerance = NEAR_TIE * abs(lead) if noise is None else leader.weights.eval_loss * noise
    tied = [one for one in candidates if ranks[one.step] <= lead + tolerance]
    return min(tied, key=lambda one: (one.epochs_without_improvement != 0, ranks[one.step], one.step))


def _loss(checkpoint: ScoredCheckpoint) -> float:
    assert checkpoint.eval_loss is not None, "a finite score has a loss"
    return checkpoint.eval_loss


def _finite(value: object) -> float | None:
    """Return a finite number as float, None for everything else; numpy's numbers are numbers."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:40]


def _unscored(reason: str) -> ScoreParts:
    return ScoreParts(None, None, None, None, math.inf, reason)
