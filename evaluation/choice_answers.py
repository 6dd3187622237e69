"""Which of several options an answer chooses, by its letter or by its text."""

from __future__ import annotations

import re
from collections.abc import Mapping

from evaluation.answer_text import normalised

_OPTION = re.compile(r"^[ \t]*[(\[]?([A-Z])[).:\]][ \t]+(\S.*)$", re.MULTILINE)
_LETTER_ALONE = re.compile(r"[\s(\[*\"']*([A-Za-z])[\s)\].:*\"']*")
_LETTER_FIRST = re.compile(r"\s*[(\[*]{0,3}([A-Z])[)\].:*]{1,3}(?:\s|$)")
_LETTER_NAMED = re.compile(
    r"(?i:\b(?:answer|option|choice))\b(?i:\s+is)?[\s:]{0,3}[(\[*\"']{0,3}([A-Z])(?![\w'])"
)


def options_in(question: str) -> dict[str, str]:
    """Return the options that a question lists line by line, as ``A) red`` or ``B. blue``."""
    return {letter: normalised(text) for letter, text in _OPTION.findall(question)}


def letter_in(answer: str) -> str | None:
    """Return the letter that an answer names: alone, in front, or as "the answer is B"; None if none."""
    if found := _LETTER_ALONE.fullmatch(answer):
        return found[1].upper()
    if found := _LETTER_FIRST.match(answer):
        return found[1]
    named = _LETTER_NAMED.findall(answer)
    return named[-1] if named else None


def same_choice(expected: str, answer: str, options: Mapping[str, str]) -> bool:
    """Tell whether both choose the same option; `options` are normalised texts by letter."""
    gold, said = _chosen(expected, options), _chosen(answer, options)
    if gold is not None and said is not None:
        return gold == said
    return normalised(expected) == normalised(answer) or normalised(answer) == _text_after_letter(expected)


def _chosen(answer: str, options: Mapping[str, str]) -> str | None:
    text = normalised(answer)
    for letter, option in options.items():
        if text == option:
            return letter
    named = letter_in(answer)
    return named if not options or named in options else None


def _text_after_letter(answer: str) -> str | None:
    """Return "red" of ``A) red``."""
    found = _OPTION.fullmatch(answer.strip())
    return normalised(found[2]) if found else None
