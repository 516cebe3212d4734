"""Work in pieces, which are halved where memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from accelerate.utils.memory import should_reduce_batch_size

Result = TypeVar("Result")


def in_pieces(
    items: Any, size: Callable[[Any], int], run: Callable[[Any], Result], shrink: Callable[[Any, int], None]
) -> Iterator[Result]:
    """What `run` gives of one piece of a sequence after the other.

    `size` says how many of the remaining items the next piece has. Where memory does not suffice for them, `shrink`
    is given the remaining items and half as many, after which `size` is asked again.

    Raises what torch raises where memory does not suffice for a single item.
    """
    while len(items):
        count = size(items)
        try:
            results = [run(items[:count])]
        except Exception as error:
            if count == 1 or not should_reduce_batch_size(error):
                raise
            shrink(items, count // 2)
        else:
            yield results.pop()  # which is not held here while it is used
            items = items[count:]
