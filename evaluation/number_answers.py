"""The number that an answer comes to, as people write numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Context, Decimal

MAX_DIGITS = 40
"""A longer one is a text of digits to us."""
_NUMBER = re.compile(
    r"(?P<sign>(?<!\w)[-+−])?(?P<point>(?<!\w)\.(?=\d))?(?P<digits>(?:\d[\d,.'’\u00a0\u202f]*)?\d)"
    r"(?P<power>[eE][-+]?\d{1,3}(?!\w))?(?P<percent>\s?%)?"
)
_BLANKS = str.maketrans("", "", "'’\u00a0\u202f")
_EXACT = Context(prec=2 * MAX_DIGITS)


@dataclass(frozen=True, slots=True)
class NumberAnswer:
    """A number, and whether it was said in percent."""

    value: Decimal
    is_percent: bool

    @property
    def share(self) -> Decimal:
        """The number itself, a hundredth of it where it was said in percent."""
        return _EXACT.multiply(self.value, Decimal("0.01")) if self.is_percent else self.value


def number_in(text: str) -> NumberAnswer | None:
    """Return the last number of a text, or None when it has none.

    ``1,234.5``, ``1.234.567`` and ``1'234`` hold thousands separators, ``3,14`` a decimal comma.
    """
    found = max(_NUMBER.finditer(text), key=re.Match.start, default=None)
    if found is None or len(found["digits"]) > MAX_DIGITS:
        return None
    minus = "-" if found["sign"] in ("-", "−") else ""
    digits = found["digits"].translate(_BLANKS)
    plain = f"0.{digits}" if found["point"] and digits.isdigit() else _plain(digits)
    value = Decimal(f"{minus}{plain}{found['power'] or ''}")
    return NumberAnswer(value, found["percent"] is not None)


def is_number(text: str) -> bool:
    """Tell whether a text is one number and nothing else: no list of them, no date, no range."""
    found = _NUMBER.fullmatch(text.strip().removesuffix("."))
    if found is None or len(found["digits"]) > MAX_DIGITS:
        return False
    digits = found["digits"].translate(_BLANKS)
    return sum(map(str.isdigit, _plain(digits))) == sum(map(str.isdigit, digits))


def same_number(expected: NumberAnswer, given: NumberAnswer, tolerance: float, relative: float) -> bool:
    """Tell whether two numbers differ by no more than a distance, or a share of the expected one.

    45 % is 0.45, and also 45 where only the sign was left out; 0.45 % is not 0.45.
    """

    def near(one: Decimal, other: Decimal) -> bool:
        limit = max(Decimal(str(tolerance)), _EXACT.multiply(Decimal(str(relative)), abs(one)))
        return abs(_EXACT.subtract(one, other)) <= limit

    if expected.is_percent == given.is_percent:
        return near(expected.value, given.value)
    if near(expected.share, given.share):
        return True
    return abs(expected.value) > 1 and near(expected.value, given.value)


def _plain(digits: str) -> str:
    """Return a run of digits, commas and points as a decimal numeral; of a list, its last number."""
    commas, points = digits.count(","), digits.count(".")
    if commas and points:
        decimal_sign = max(",.", key=digits.rfind)
        whole, _, part = digits.rpartition(decimal_sign)
        separator = "," if decimal_sign == "." else "."
        return f"{whole.replace(separator, '')}.{part}" if _is_grouped(whole, separator) else part
    if commas and _is_grouped(digits, ","):
        return digits.replace(",", "")
    if points > 1 and _is_grouped(digits, "."):
        return digits.replace(".", "")
    if commas + points == 1:
        return digits.replace(",", ".")
    return re.split("[,.]", digits)[-1]


def _is_grouped(digits: str, separator: str) -> bool:
    """Tell whether `separator` stands before each three digits from the right and nowhere else."""
    first, *groups = digits.split(separator)
    return (
        1 <= len(first) <= 3
        and first.isdigit()
        and first[0] != "0"
        and all(len(group) == 3 and group.isdigit() for group in groups)
    )
