"""The model in this very process, asked as the server is asked, for when none runs."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence

from chat_template import Message
from config import Config, Paths
from serving.adapters import AdaptedModel
from serving.batching import Engine
from serving.catalogue import Catalogue
from serving.tickets import Piece, Ticket
from training.model import set_threads


class LocalModel:
    """Answers one question after the other."""

    def __init__(self, paths: Paths, config: Config) -> None:
        set_threads(config.train)
        self._config = config
        self._catalogue = Catalogue(paths, config.model)
        self._engine = Engine(AdaptedModel(config), 1, 1, _hand_out)
        self._engine.start()

    def ask(self, messages: Sequence[Message], model: str, *, max_tokens: int | None = None) -> Iterator[str]:
        """Yield a greedy answer as it comes; raises what is wrong with the model or the messages."""
        served = self._catalogue.find(model)
        prompt = served.base.template.encode_prompt(messages)
        limit = max_tokens or self._config.serving.max_output_tokens
        arrived: queue.Queue[Piece] = queue.Queue()
        ticket = Ticket(served, prompt, limit, arrived.put, is_streamed=True)
        self._engine.submit([ticket])
        try:
            piece = arrived.get()
            while not piece.is_last:
                yield piece.text
                piece = arrived.get()
            if piece.error is not None:
                raise piece.error
            yield piece.text
        finally:
            self._engine.cancel(ticket)

    def close(self) -> None:
        """End the thread that answers."""
        self._engine.stop()


def _hand_out(pieces: Sequence[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in pieces:
        ticket.receive(piece)
