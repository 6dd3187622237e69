"""Answers in the making: the row that each one is of a batch, and the rows of one version."""

from __future__ import annotations

from dataclasses import dataclass

from chat_template import ChatTemplate
from serving.answer_text import AnswerText
from serving.catalogue import ServedModel
from serving.decoding import Batch
from serving.tickets import FinishReason, Piece, Ticket


@dataclass
class Row:
    """An answer in the making."""

    ticket: Ticket
    template: ChatTemplate
    text: AnswerText | None
    """None where the text is only wanted whole."""
    tokens: list[int]

    @classmethod
    def of(cls, ticket: Ticket) -> Row:
        template = ticket.served.base.template
        is_watched = ticket.is_streamed or bool(ticket.stop)
        return cls(ticket, template, AnswerText(template.decode, ticket.stop) if is_watched else None, [])

    def take(self, token: int) -> Piece | None:
        """Take the next token; return what is to be handed out now."""
        self.tokens.append(token)
        is_end = token in self.template.stop_token_ids
        fresh = "" if is_end or self.text is None else self.text.add(token)
        is_stopped = self.text is not None and self.text.is_stopped
        if is_end or is_stopped or len(self.tokens) >= self.ticket.max_tokens:
            return self._last(fresh, "stop" if is_end or is_stopped else "length")
        if fresh and self.ticket.is_streamed:
            return Piece(fresh, len(self.tokens))
        return None

    def _last(self, fresh: str, reason: FinishReason) -> Piece:
        count = len(self.tokens)
        if self.text is None:
            is_end = self.tokens[-1] in self.template.stop_token_ids
            return Piece(self.template.decode(self.tokens[: count - is_end]), count, reason)
        rest = self.text.end()
        return Piece(fresh + rest if self.ticket.is_streamed else self.text.text, count, reason)


@dataclass
class Lane:
    """The rows of one version."""

    served: ServedModel
    batch: Batch
    rows: list[Row]
