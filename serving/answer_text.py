"""The text of an answer while its tokens arrive: no half characters, and nothing past a stop sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "�"
"""What a tokenizer shows for the first bytes of a character."""


class AnswerText:
    """Turns one token after the other into text that stays as it is."""

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        """`decode` turns token ids into text; `stops` are sequences that end the answer before them."""
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        self._context_from = 0
        self._read_to = 0
        self._text = ""
        self._given = 0
        self.is_stopped = False

    @property
    def text(self) -> str:
        """All that is certain so far, without the stop sequence that ended it."""
        return self._text

    def add(self, token: int) -> str:
        """Return what of the text has become certain with this token."""
        self._tokens.append(token)
        # A token's text depends on those before it; the few that came last are enough to tell.
        before = self._decode(self._tokens[self._context_from : self._read_to])
        after = self._decode(self._tokens[self._context_from :])
        if len(after) <= len(before) or after.endswith(_UNFINISHED):
            return ""
        self._context_from, self._read_to = self._read_to, len(self._tokens)
        self._append(after[len(before) :])
        return self._give(len(self._text) if self.is_stopped else len(self._text) - self._may_be_a_stop())

    def end(self) -> str:
        """Return what was held back, when no further token comes."""
        if not self.is_stopped:
            whole = self._decode(self._tokens)
            if whole.startswith(self._text):
                self._append(whole[len(self._text) :])
        return self._give(len(self._text))

    def _append(self, addition: str) -> None:
        searched = max(0, len(self._text) - max(map(len, self._stops), default=0))
        self._text += addition
        found = [at for stop in self._stops if (at := self._text.find(stop, searched)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.is_stopped = True

    def _may_be_a_stop(self) -> int:
        """Return how many of the last characters may turn out to begin a stop sequence."""
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, len(stop))
                if self._text.endswith(stop[:length])
            ),
            default=0,
        )

    def _give(self, to: int) -> str:
        given, self._given = self._text[self._given : to], max(self._given, to)
        return given
