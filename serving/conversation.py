"""A conversation that goes on: what was said, as much of it as the model can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chat_template import Message

Count = Callable[[Sequence[Message]], int]


class Conversation:
    """Remembers questions and answers; the oldest are forgotten when the prompt would grow too long."""

    def __init__(self, system: str | None, count: Count, longest_tokens: int) -> None:
        """`count` returns the tokens of a prompt; none will be longer than `longest_tokens` if possible."""
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[Message] = []
        self._count = count
        self._longest = longest_tokens

    def ask(self, question: str) -> list[Message]:
        """Return the prompt of a question with what was said before it."""
        asked: list[Message] = [{"role": "user", "content": question}]
        while self._turns and self._count([*self._system, *self._turns, *asked]) > self._longest:
            del self._turns[:2]
        return [*self._system, *self._turns, *asked]

    def remember(self, question: str, answer: str) -> None:
        """Keep a question that was answered."""
        self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self._turns.clear()

    @property
    def turns(self) -> int:
        """Questions that are remembered."""
        return len(self._turns) // 2
