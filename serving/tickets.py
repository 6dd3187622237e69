"""A request on its way: what was asked, where it waits, and the pieces of its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from errors import TrainboxError
from serving.catalogue import ServedModel

FinishReason = Literal["stop", "length"]


class QueueFull(TrainboxError):
    """As many requests wait as may; come back later."""


class CannotAnswer(TrainboxError):
    """A request that was accepted cannot be answered after all; the sentence says why."""


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens chosen; without a wish the likeliest one is taken."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens that together reach this probability are drawn from."""
    seed: int | None = None
    """The same seed gives the same answer; None gives another one each time."""


@dataclass(frozen=True)
class Piece:
    """What has come of an answer since the piece before."""

    text: str
    tokens: int
    """Generated so far, the one that ended the answer included."""
    finish_reason: FinishReason | None = None
    error: TrainboxError | None = None
    """Why there will be no more; None as long as all is well."""

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


@dataclass(eq=False)
class Ticket:
    """One prompt that waits for its answer or is being answered."""

    served: ServedModel
    prompt: Sequence[int]
    max_tokens: int
    receive: Callable[[Piece], None]
    """Gets the pieces, in the thread that hands them out."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    is_streamed: bool = False
    """Whether text is wanted as it comes; else there is one piece, the last."""
    is_cancelled: bool = False
    """Set when nobody waits for the answer any more."""
