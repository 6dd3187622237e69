"""Average accuracy, backward and forward transfer, against numbers reckoned by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.transfer import Transfer, transfer

UNTRAINED = [0.1, 0.2, 0.3]
LEARNED = [0, 1, 2]
MATRIX = [
    [0.9, 0.3, 0.4],
    [0.7, 0.8, 0.6],
    [0.6, 0.7, 1.0],
]


def test_a_whole_matrix_gives_the_numbers_of_the_paper() -> None:
    found = transfer(MATRIX, LEARNED, UNTRAINED)
    assert found.average_accuracy == pytest.approx((0.6 + 0.7 + 1.0) / 3)
    assert found.backward_transfer == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)
    assert found.forward_transfer == pytest.approx(((0.3 - 0.2) + (0.6 - 0.3)) / 2)


def test_slices_of_later_files_do_not_count_yet() -> None:
    found = transfer(MATRIX[:2], LEARNED, UNTRAINED)
    assert found.average_accuracy == pytest.approx((0.7 + 0.8) / 2)
    assert found.backward_transfer == pytest.approx(0.7 - 0.9)
    assert found.forward_transfer == pytest.approx(0.3 - 0.2)


def test_a_first_model_has_an_average_and_nothing_to_transfer() -> None:
    assert transfer(MATRIX[:1], LEARNED, UNTRAINED) == Transfer(0.9, None, None)


def test_a_hole_leaves_out_what_would_need_it_and_nothing_else() -> None:
    matrix = [[0.9, None, 0.4], [0.7, 0.8, None], [None, 0.7, 1.0]]
    found = transfer(matrix, LEARNED, UNTRAINED)
    assert found.average_accuracy == pytest.approx((0.7 + 1.0) / 2)
    assert found.backward_transfer == pytest.approx(0.7 - 0.8)
    assert found.forward_transfer is None


def test_a_slice_that_no_model_learned_counts_nowhere() -> None:
    with_foreign = [[*row, 0.5] for row in MATRIX]
    assert transfer(with_foreign, [*LEARNED, None], [*UNTRAINED, 0.0]) == transfer(MATRIX, LEARNED, UNTRAINED)


def test_one_model_may_learn_several_slices() -> None:
    found = transfer([[0.5, 0.7, 0.2], [0.4, 0.9, 0.8]], [0, 0, 1], UNTRAINED)
    assert found.backward_transfer == pytest.approx(((0.4 - 0.5) + (0.9 - 0.7)) / 2)
    assert found.forward_transfer == pytest.approx(0.2 - 0.3)


def test_without_models_nothing_is_known() -> None:
    assert transfer([], LEARNED, UNTRAINED) == Transfer(None, None, None)


def test_rows_of_different_widths_are_an_error() -> None:
    with pytest.raises(ValueError, match="expected 3"):
        transfer([[0.5, 0.5]], LEARNED, UNTRAINED)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(2, 6))
def test_models_that_never_change_neither_forget_nor_gain(row: list[float], models: int) -> None:
    learned = [min(number, models - 1) for number in range(len(row))]
    found = transfer([row] * models, learned, row)
    assert found.average_accuracy == pytest.approx(sum(row) / len(row))
    assert found.backward_transfer in (0.0, None)
    assert found.forward_transfer == 0.0
