"""What the crash tests counted, added up to the one line that `make crash` ends with."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

Harm = Literal["lost", "double", "half"]
"""A file or record gone; one trained twice; something torn, untrue or left behind."""


@dataclass
class Tally:
    """Counts of one part of the crash tests; `+` adds two of them."""

    kill_points: int = 0
    cuts: int = 0
    faults: int = 0
    sequences: int = 0
    bad_inputs: int = 0
    planted_bugs: int = 0
    planted_bugs_caught: int = 0
    lost: int = 0
    double: int = 0
    half: int = 0
    failures: list[str] = field(default_factory=list)
    """Each says the point, the invariant, and what was found."""

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            **{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)}
        )

    def fail(self, point: str, harm: Harm, what: str) -> None:
        """Count one violated invariant."""
        setattr(self, harm, getattr(self, harm) + 1)
        self.failures.append(f"{point}: {harm}: {what}")

    def __str__(self) -> str:
        counts = " ".join(
            f"{name}={getattr(self, name)}"
            for name in ("kill_points", "cuts", "faults", "sequences", "bad_inputs")
        )
        caught = f"planted_bugs_caught={self.planted_bugs_caught}/{self.planted_bugs}"
        return f"crash: {counts} {caught} lost={self.lost} double={self.double} half={self.half}"
