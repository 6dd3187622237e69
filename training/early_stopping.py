"""When a run has stopped getting better: patience counted in evaluations.

Nothing is chosen here: the best checkpoint stays the one that the scorer names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """When to stop; lower values of the metric are better."""

    patience: int
    """Evaluations in a row without improvement after which a run stops; at least 1."""
    metric: Literal["score", "eval_loss"] = "score"
    min_delta: float = 0.0
    """By how much a value must be lower than the last that counted, to count as an improvement."""

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise ValueError(
                f"patience {self.patience} must be 1 or more, min_delta {self.min_delta} not < 0"
            )


@dataclass(frozen=True, slots=True)
class StoppingState:
    """All that was seen and matters; kept with a checkpoint so that a resumed run decides the same."""

    last_step: int | None = None
    evaluations: int = 0
    best: float | None = None
    best_step: int | None = None
    without_improvement: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StoppingState:
        return cls(**document)


class EarlyStopping:
    """Follows the evaluations of one run."""

    def __init__(self, rule: StoppingRule, state: StoppingState | None = None) -> None:
        """Go on from `state`, or begin."""
        self._rule = rule
        self.state = StoppingState() if state is None else state

    def observe(self, step: int, value: float | None) -> str | None:
        """Take the metric of the evaluation at `step`; return why the run should stop, or None.

        A step already seen is not counted again. A value that is no finite number is no improvement. Small
        gains add up: a value is compared with the last one that counted as an improvement.
        """
        seen = self.state
        if seen.last_step is None or step > seen.last_step:
            self.state = self._after(step, value)
        return self.reason

    @property
    def reason(self) -> str | None:
        """Why the run should stop now, in one sentence, or None."""
        state, rule = self.state, self._rule
        if state.without_improvement < rule.patience:
            return None
        best = "no value was finite" if state.best is None else f"best {state.best:.6g} at {state.best_step}"
        return (
            f"{rule.metric} has not improved by more than {rule.min_delta:g} in {state.without_improvement} "
            f"evaluations up to step {state.last_step} ({best}; patience {rule.patience})"
        )

    def _after(self, step: int, value: float | None) -> StoppingState:
        seen = self.state
        is_better = (
            value is not None
            and math.isfinite(value)
            and (seen.best is None or value < seen.best - self._rule.min_delta)
        )
        return StoppingState(
            last_step=step,
            evaluations=seen.evaluations + 1,
            best=value if is_better else seen.best,
            best_step=step if is_better else seen.best_step,
            without_improvement=0 if is_better else seen.without_improvement + 1,
        )
