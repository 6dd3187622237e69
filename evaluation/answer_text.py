"""What of an answer is compared: without its thoughts and its code fence, and in a form in which spelling of
blanks and capitals makes no difference. What is kept of an answer is always the whole of it.
"""

from __future__ import annotations

import re
import unicodedata

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_FENCE = "```"
# A script without blanks between words counts by its signs.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def bare(text: str) -> str:
    """Return an answer without think blocks, without the code fence around it and without outer blanks."""
    return without_fence(without_thoughts(text))


def without_thoughts(text: str) -> str:
    """Return what is said outside think blocks; a block that never ends swallows the rest.

    Where a template opens the block in the prompt, only its end is in the answer.
    """
    first_close = text.find(THINK_CLOSE)
    if first_close >= 0 and text.find(THINK_OPEN, 0, first_close) < 0:
        text = text[first_close + len(THINK_CLOSE) :]
    said = []
    for number, piece in enumerate(text.split(THINK_OPEN)):
        _, closed, rest = piece.partition(THINK_CLOSE)
        said.append(piece if number == 0 else rest if closed else "")
    return "".join(said)


def without_fence(text: str) -> str:
    """Return the inside of a text that is one fenced code block as a whole, and any other text stripped."""
    text = text.strip()
    if not (text.startswith(_FENCE) and text.endswith(_FENCE) and text.count(_FENCE) == 2):
        return text
    _, newline, inside = text[: -len(_FENCE)].partition("\n")
    return inside.strip() if newline else text


def only_block(text: str) -> str | None:
    """Return the inside of the only fenced code block of a text, whatever is said around it."""
    pieces = text.split(_FENCE)
    if len(pieces) != 3 or "\n" not in pieces[1]:
        return None
    return pieces[1].partition("\n")[2].strip()


def normalised(text: str) -> str:
    """Return a text in which blanks, capitals, composed accents and one full stop at the end are alike."""
    joined = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return joined.removesuffix(".") or joined


def words(text: str) -> list[str]:
    """Return the words of a text without punctuation, capitals being alike."""
    return _WORD.findall(unicodedata.normalize("NFC", text).casefold())
