"""Which regular expressions a record may bring: such as can be compiled and tried at a bounded cost.

How long one is tried is bounded by the clock, but compiling cannot be interrupted, and takes time and memory
that double with each quantified group inside another one; recursion fills the memory while it is tried.
"""

from __future__ import annotations

import math
import re

import regex

MAX_CHARACTERS = 200
MAX_GROUPS = 10
MAX_REPEATS = 200
_REPEATS = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
_RECURSION = re.compile(r"\(\?(?:R|&|P>|[-+]?\d)")


def check(pattern: str) -> None:
    """Raise ValueError, with what to do, when `pattern` is no regular expression or may cost too much."""
    if len(pattern) > MAX_CHARACTERS:
        raise ValueError(f"the pattern has {len(pattern)} characters; at most {MAX_CHARACTERS} are allowed")
    if (groups := pattern.count("(")) > MAX_GROUPS:
        raise ValueError(f"the pattern has {groups} opening brackets; at most {MAX_GROUPS} are allowed")
    if _repeats(pattern) > MAX_REPEATS:
        raise ValueError(f"the counts in braces multiply to more than {MAX_REPEATS}; lower them")
    if _RECURSION.search(pattern):
        raise ValueError("the pattern calls itself, which is not allowed; write it out")
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise ValueError(f"the pattern is no regular expression: {error}") from None


def _repeats(pattern: str) -> int:
    counts = (max(int(low or 1), int(high or 1), 1) for low, high in _REPEATS.findall(pattern))
    return math.prod(counts)
