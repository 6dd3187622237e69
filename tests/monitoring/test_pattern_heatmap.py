"""Answers are counted by what was asked and how long the expected answer is."""

from __future__ import annotations

import pytest

from evaluation.pattern_tracker import PATTERNS as KINDS
from monitoring.pattern_heatmap import LENGTHS, PATTERNS, HeatmapCell, PatternHeatmap


def test_a_known_mix_fills_known_cells() -> None:
    heatmap = PatternHeatmap()
    mix = [
        *(("math", 10, True), ("math", 10, False), ("math", 10, False), ("math", 99, True)),
        *(("math", 100, True), ("other", 2000, False), ("syllo_hard", 700, True)),
    ]
    for pattern, tokens, matches in mix:
        heatmap.observe(pattern, tokens, matches)
    table = heatmap.table()
    assert (table.rows, table.cols) == ((*PATTERNS, "syllo_hard"), LENGTHS)
    filled = {
        (row, col): (cell.seen, cell.em)
        for row, cells in table.data.items()
        for col, cell in cells.items()
        if cell.seen
    }
    assert filled == {
        ("math", "0-100"): (4, 0.5),
        ("math", "100-300"): (1, 1.0),
        ("other", "2000+"): (1, 0.0),
        ("syllo_hard", "500-1000"): (1, 1.0),
    }
    assert table.data["coding"]["0-100"] == HeatmapCell(seen=0, em=None)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        *((0, "0-100"), (99, "0-100"), (100, "100-300"), (300, "300-500"), (999, "500-1000")),
        *((1000, "1000-2000"), (1999, "1000-2000"), (2000, "2000+")),
    ],
)
def test_a_length_lies_in_one_column(tokens: int, length: str) -> None:
    heatmap = PatternHeatmap()
    heatmap.observe("other", tokens, True)
    assert heatmap.table().data["other"][length].seen == 1


def test_its_rows_are_the_kinds_of_prompts() -> None:
    assert PATTERNS == KINDS
