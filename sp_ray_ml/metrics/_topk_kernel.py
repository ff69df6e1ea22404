"""The machine code of `top_k`: one pass over each row with a heap of the best k. Compiled once, then read from disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import float32, int32, int64, njit

from sp_ray_ml._compiled import compiled

__all__ = ["NO_NAN", "best_of_rows"]

NO_NAN = -1
"""What `best_of_rows` returns when every score is a number."""

# A block is looked at as a whole first. Its length must be a literal for the compiler to vectorise that look; 128
# is where the look (0.1 ns a score) and the search of a block that has a candidate cost least together.
_BLOCK = 128


def _helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile it as a part of its caller: nothing of its own to load when the caller's code is read from disk."""
    return cast("Callable[..., Any]", njit(function))


@_helper
def _worse(score: float, item: int, other_score: float, other_item: int) -> bool:
    return score < other_score or (score == other_score and item > other_item)


@_helper
def _sift_down(scores: Any, items: Any, size: int, score: float, item: int) -> None:
    """Put an entry in place of the root of a heap whose root is its worst."""
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _worse(scores[child + 1], items[child + 1], scores[child], items[child]):
            child += 1
        if not _worse(scores[child], items[child], score, item):
            break
        scores[at] = scores[child]
        items[at] = items[child]
        at = child
    scores[at] = score
    items[at] = item


@_helper
def _sift_up(scores: Any, items: Any, at: int, score: float, item: int) -> None:
    """Add an entry at the end of the heap."""
    while at > 0:
        parent = (at - 1) >> 1
        if not _worse(score, item, scores[parent], items[parent]):
            break
        scores[at] = scores[parent]
        items[at] = items[parent]
        at = parent
    scores[at] = score
    items[at] = item


@compiled(int64(float32[:, ::1], int64[::1], int32[::1], int64, int64, int32[:, ::1], float32[:, ::1]))
def best_of_rows(
    scores: Any, indptr: Any, excluded: Any, first: int, last: int, best: Any, best_scores: Any
) -> int:
    """Fill rows `first` to `last` of `best` and `best_scores`; return the first row with a NaN, or `NO_NAN`."""
    num_items = scores.shape[1]
    k = best.shape[1]
    for row in range(first, last):
        values = scores[row]
        heap, heap_items = best_scores[row], best[row]
        size = 0
        threshold = np.float32(-np.inf)
        at, end = indptr[row], indptr[row + 1]
        for start in range(0, num_items, _BLOCK):
            block = values[start : start + _BLOCK]
            if block.shape[0] == _BLOCK:
                above = int32(0)
                for i in range(_BLOCK):
                    # `not <=` rather than `>`: it also stops at a NaN.
                    above = int32(above + int32(not (block[i] <= threshold)))
                if above == 0:
                    continue
            for i in range(block.shape[0]):
                score = block[i]
                if score <= threshold:
                    continue
                if score != score:  # noqa: PLR0124
                    return row
                item = int32(start + i)
                while at < end and excluded[at] < item:
                    at += 1
                if at < end and excluded[at] == item:
                    continue
                if size < k:
                    _sift_up(heap, heap_items, size, score, item)
                    size += 1
                else:
                    _sift_down(heap, heap_items, k, score, item)
                if size == k:
                    threshold = heap[0]
        for rest in range(size - 1, 0, -1):
            score, item = heap[rest], heap_items[rest]
            heap[rest] = heap[0]
            heap_items[rest] = heap_items[0]
            _sift_down(heap, heap_items, rest, score, item)
    return NO_NAN
