"""What kind of thing a prompt asks for, by its wording: the row of the heatmap in which its answer counts.

The first kind that fits is taken. A syllable puzzle is known by its difficulty. The words are English; what
is asked in another language, or in no telling way, is ``other``.
"""

from __future__ import annotations

import re

MAX_CHARACTERS = 4000
"""The beginning of a prompt tells enough."""
OTHER = "other"

_PUZZLE = re.compile(r"\bSYLLO\b")
_LEVEL = re.compile(r"(?mi)^\W*(?:difficulty|level)\W+(\w+)")
_ARITHMETIC = r"\d\s*[-+*/×÷^=]\s*\d"
_CODE = r"```|\b(?:def|class|import|function|sql|python|javascript|java|regex|json|html|bash|code|bug|api)\b"
_FACT = (
    r"\b(?:(?:who|when|where)\s+(?:is|are|was|were|did|does|do)|what\s+(?:is|are|was)\s+(?:the|a|an)|"
    r"which\s+\w+\s+(?:is|are|was|has)|capital\s+of|define)\b"
)
_REASON = (
    r"\b(?:why|therefore|step[\s-]by[\s-]step|explain|reason(?:ing)?|deduce|conclude|infer|logic(?:al)?|"
    r"compare|prove|pros\s+and\s+cons|if\b[^.?!\n]{1,200}\bthen)\b"
)
_TEXT = (
    r"\b(?:write|compose|invent|imagine|tell)\b[^.?!\n]{0,80}"
    r"\b(?:story|poem|haiku|song|lyrics|tale|essay|slogan|dialogue|joke|limerick)\b|\bbrainstorm\b"
)
_SUM = (
    rf"{_ARITHMETIC}|\b(?:calculate|compute|solve|sum|equation|multiply|divide|subtract|percent(?:age)?|"
    r"how\s+(?:many|much)|integral|derivative|square\s+root)\b"
)
# A question for a sum or a program is worded like one for a fact.
_NO_FACT = re.compile(f"{_CODE}|{_SUM}", re.IGNORECASE)
_PATTERNS = [
    (name, re.compile(wording, re.IGNORECASE))
    for name, wording in (
        ("factual", _FACT),
        ("reasoning", _REASON),
        ("creative", _TEXT),
        ("coding", _CODE),
        ("math", _SUM),
    )
]
PATTERNS = (*(name for name, _ in _PATTERNS), OTHER)


def pattern_of(prompt: str) -> str:
    """Return ``syllo_`` and a difficulty for a puzzle, one of `PATTERNS` for any other prompt."""
    prompt = prompt[:MAX_CHARACTERS]
    if _PUZZLE.search(prompt):
        level = _LEVEL.search(prompt)
        return "syllo" if level is None else f"syllo_{level[1].lower()}"
    for name, wording in _PATTERNS:
        if wording.search(prompt) and not (name == "factual" and _NO_FACT.search(prompt)):
            return name
    return OTHER
