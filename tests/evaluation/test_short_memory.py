"""Work that memory does not hold is done in halves, each item once and in order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from evaluation.short_memory import in_parts


def test_parts_halve_until_they_fit_and_every_item_is_done_once() -> None:
    tried: list[int] = []
    sizes: list[int] = []

    def double(numbers: Sequence[int]) -> list[int]:
        tried.append(len(numbers))
        if len(numbers) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * number for number in numbers]

    done = list(in_parts(range(11), 7, double, sizes.append))
    assert [number for part, _ in done for number in part] == list(range(11))
    assert [number for _, result in done for number in result] == list(range(0, 22, 2))
    assert tried[:3] == [7, 4, 2]
    assert sizes == [4, 2]


def test_an_item_that_never_fits_is_an_error() -> None:
    def refuse(_: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        list(in_parts([1, 2, 3], 2, refuse))
