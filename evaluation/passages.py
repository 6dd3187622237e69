"""What is examined as rows of tokens: which of them count, and how long passages are cut.

A passage is counted as the trainer counts the record it comes from: no first token of a row, since nothing
foretells it, and of turns the answers alone. An item is counted by its last answer.
"""

from __future__ import annotations

from chat_template import ChatTemplate, Encoded
from config import DataConfig
from evaluation.items import Examined, Item, Passage


def expected_rows(item: Examined, template: ChatTemplate, data: DataConfig) -> list[Encoded]:
    """Return rows whose spans are what a model should find likely.

    A passage longer than `data.max_length` tokens becomes several rows, or, where `data.excess_length` is
    truncate, loses what is too much; none is left where nothing within the limit counts. Raises
    RecordRefused when the template cannot render a conversation.
    """
    if isinstance(item, Item):
        encoded = template.encode_messages(item.conversation, item.tools)
        return [Encoded(encoded.input_ids, encoded.spans[-1:])]
    if item.rejected:
        return _pair(item, template, data)[:1]
    if item.text is not None:
        rows = _pieces(template.encode_text(item.text), data.max_length)
    else:
        rows = _pieces(template.encode_messages([*item.given, *item.turns], item.tools), data.max_length)
    return _counted(rows[:1] if data.excess_length == "truncate" else rows)


def rejected_rows(item: Examined, template: ChatTemplate, data: DataConfig) -> list[Encoded]:
    """Return one row whose spans are what a model should find less likely; none where there is nothing."""
    return _pair(item, template, data)[1:] if isinstance(item, Passage) and item.rejected else []


def _pair(passage: Passage, template: ChatTemplate, data: DataConfig) -> list[Encoded]:
    """Return both answers of a pair, cut alike; none where nothing of one is left."""
    rows = []
    for turns in (passage.turns, passage.rejected):
        encoded = template.encode_messages([*passage.given, *turns])
        answers = sum(message["role"] == "assistant" for message in turns)
        row = Encoded(encoded.input_ids, encoded.spans[-answers:])
        rows += _counted(_pieces(row, data.max_length)[:1])
    return rows if len(rows) == 2 else []


def _pieces(row: Encoded, size: int) -> list[Encoded]:
    """Cut a row after every `size` tokens."""
    return [
        Encoded(
            row.input_ids[at : at + size],
            # From the second token on: nothing foretells the first one of a piece.
            [(max(start - at, 1), min(end - at, size)) for start, end in row.spans],
        )
        for at in range(0, len(row.input_ids), size)
    ]


def _counted(rows: list[Encoded]) -> list[Encoded]:
    """Leave out spans without a token, and rows without a span."""
    kept = (Encoded(row.input_ids, [(start, end) for start, end in row.spans if start < end]) for row in rows)
    return [row for row in kept if row.spans]
