"""What learning one file after another does to all of them: average accuracy, backward and forward transfer.

The numbers are those of GEM (Lopez-Paz and Ranzato, arXiv:1706.08840, section 2), for a matrix with holes:
a cell that was never measured is None and leaves its pair out, and a mean over nothing is None, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Row = Sequence[float | None]
"""The accuracy of one model on every slice, from 0 to 1; None where it was not measured."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """How the newest model of a lineage stands on all that the lineage has learned."""

    average_accuracy: float | None
    """Mean over the slices learned so far."""
    backward_transfer: float | None
    """Mean change since each earlier slice was learned; below 0 is forgetting."""
    forward_transfer: float | None
    """Mean lead over the untrained model on each slice, just before it was learned."""


def transfer(matrix: Sequence[Row], learned: Sequence[int | None], untrained: Row) -> Transfer:
    """Reckon all three for the last row of `matrix`.

    Rows are the models of one lineage, oldest first; columns are slices. `learned` gives for each slice the
    row of the model that was trained on the file it comes from, or None when none of them was; `untrained`
    is the row of the model that the lineage began with. Raises ValueError when the widths differ.
    """
    if any(len(row) != len(learned) for row in (*matrix, untrained)):
        widths = sorted({len(row) for row in (*matrix, untrained)})
        raise ValueError(f"rows of {widths} slices, expected {len(learned)}, as many as 'learned' has")
    return Transfer(
        average_accuracy=average_accuracy(matrix, learned),
        backward_transfer=backward_transfer(matrix, learned),
        forward_transfer=forward_transfer(matrix, learned, untrained),
    )


def average_accuracy(matrix: Sequence[Row], learned: Sequence[int | None]) -> float | None:
    """Return the mean accuracy of the last model on the slices that were learned up to it."""
    if not matrix:
        return None
    return _mean(matrix[-1][slice_] for slice_, _ in _learned(matrix, learned))


def backward_transfer(matrix: Sequence[Row], learned: Sequence[int | None]) -> float | None:
    """Return the mean of what the slices of earlier models have gained, or lost, since they were learned."""
    return _mean(
        _difference(matrix[-1][slice_], matrix[row][slice_])
        for slice_, row in _learned(matrix, learned)
        if row < len(matrix) - 1
    )


def forward_transfer(matrix: Sequence[Row], learned: Sequence[int | None], untrained: Row) -> float | None:
    """Return the mean lead over the untrained model that others' training had given on each later slice.

    The slices of the first model are left out: nothing was learned before them.
    """
    return _mean(
        _difference(matrix[row - 1][slice_], untrained[slice_])
        for slice_, row in _learned(matrix, learned)
        if row > 0
    )


def _learned(matrix: Sequence[Row], learned: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the slices learned by one of these models, each with the row that learned it."""
    return [(slice_, row) for slice_, row in enumerate(learned) if row is not None and row < len(matrix)]


def _difference(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
