"""What a model is asked, and how its answer was judged: one item, one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from chat_template import Message
from evaluation.graders import GraderSpec


@dataclass(frozen=True, slots=True)
class Item:
    """One question whose answer is known."""

    item_id: str
    """The same in every run: the hash of a held-out record, or the name its suite gave it."""
    messages: Sequence[Message]
    """The conversation up to and including the question."""
    expected: str
    grader: GraderSpec
    level: str | None = None
    """Its difficulty or its kind, for results by level."""
    tools: list[Any] | None = None

    @property
    def question(self) -> str:
        """The turn that is answered."""
        return str(self.messages[-1]["content"]) if self.messages else ""

    @property
    def conversation(self) -> list[Message]:
        """The question with its expected answer."""
        return [*self.messages, {"role": "assistant", "content": self.expected}]


class ItemResult(BaseModel):
    """What one model made of one item; stored as a line of JSON."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    level: str | None = None
    grader: str
    expected: str
    loss_sum: float | None = None
    """Nats of the trained tokens of the expected answer; None where only answers were asked for."""
    loss_tokens: int | None = None
    answer: str | None = None
    """As the model gave it; None where only losses were asked for."""
    correct: bool | None = None
    score: float | None = None
    """From 0 to 1: 1 is right, between them is partly right."""
    f1: float | None = None
    """Token F1 of the answer against the expected one."""
    answer_tokens: int | None = None
    finish_reason: str | None = None
    seconds: float | None = None
    """Time of the batch it was answered in."""

    @property
    def loss(self) -> float | None:
        """Nats per token of the expected answer."""
        return None if self.loss_sum is None or not self.loss_tokens else self.loss_sum / self.loss_tokens
