"""Work in parts that halve where the GPU's memory does not hold one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parts(
    items: Sequence[Item],
    size: int,
    work: Callable[[Sequence[Item]], Result],
    on_short: Callable[[int], None] = lambda size: None,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """Yield parts of at most `size` items with what `work` makes of each.

    A part that memory does not hold is done again in halves, and `on_short` gets the new size. Raises
    torch.OutOfMemoryError when a single item is too large.
    """
    at = 0
    while at < len(items):
        part = items[at : at + size]
        results = _attempt(part, work)
        if results:
            yield part, results[0]
            at += len(part)
        else:
            # Outside the handler, whose traceback keeps the tensors of the failed attempt alive.
            free_memory()
            size = halved(len(part))
            on_short(size)


def halved(size: int) -> int:
    """Return half of `size`, rounded up."""
    return (size + 1) // 2


def free_memory() -> None:
    """Give back what no tensor uses any more."""
    gc.collect()
    torch.cuda.empty_cache()


def _attempt(part: Sequence[Item], work: Callable[[Sequence[Item]], Result]) -> list[Result]:
    """Return the result of `work` in a list, or an empty one where memory was short."""
    try:
        return [work(part)]
    except torch.OutOfMemoryError:
        if len(part) == 1:
            raise
        return []
