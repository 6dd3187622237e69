"""What a model is examined on, asked or not, and what it made of it: one item, one result."""

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


@dataclass(frozen=True, slots=True)
class Passage:
    """Words that nobody is asked for: what a model loses on them is measured, and nothing is generated.

    Either a plain text, every token of which counts, or turns of a conversation, every answer of which does.
    """

    item_id: str
    """The same in every run: the hash of a held-out record."""
    text: str | None = None
    given: Sequence[Message] = ()
    """Turns before, which do not count."""
    turns: Sequence[Message] = ()
    rejected: Sequence[Message] = ()
    """Turns in the place of `turns` that a model should find less likely; empty where there are none."""
    tools: list[Any] | None = None


Examined = Item | Passage


def enough_tokens(expected_tokens: int) -> int:
    """Return how many tokens an answer may have: one twice as long as the right one is wrong."""
    return 2 * expected_tokens + 16


class ItemResult(BaseModel):
    """What one model made of one item; stored as a line of JSON."""

    model_config = ConfigDict(frozen=True)

    item_id: str
    level: str | None = None
    grader: str | None = None
    """None, as `expected` is, where nothing was asked: it is the result of a passage."""
    expected: str | None = None
    loss_sum: float | None = None
    """Nats of the tokens that count of the expected answer, or of the passage; None where only answers were
    asked for."""
    loss_tokens: int | None = None
    says_expected: bool | None = None
    """Whether the model, asked greedily, says the expected answer token for token; known with its loss."""
    prefers_expected: bool | None = None
    """Whether the model loses less a token on what is expected than on what was rejected; None where nothing
    was."""
    answer: str | None = None
    """As the model gave it; None where only losses were asked for."""
    correct: bool | None = None
    """None where nothing was asked, and where time did not suffice for the answer."""
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
        """Nats per token of the expected answer, or of the passage."""
        return None if self.loss_sum is None or not self.loss_tokens else self.loss_sum / self.loss_tokens

    @property
    def is_right(self) -> bool | None:
        """Whether the answer was graded right, or, where none was asked for, the better one is preferred."""
        return self.prefers_expected if self.correct is None else self.correct
