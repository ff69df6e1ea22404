"""Machine code of co-occurrence: the pairs of one node's events."""

from __future__ import annotations

from typing import Any

import numpy as np

from sp_ray_ml._compiled import compiled

__all__ = ["pairs_within"]


@compiled()
def pairs_within(
    indptr: Any, other: Any, time: Any, window: int, neighbors: int, last: int, place: Any, keys: Any
) -> int:
    """Both directions of every pair of different nodes that one row had within a window, as `first << 32 | second`.

    Args:
        indptr: int64 [rows + 1].
        other: [events], by row and then time.
        time: int64 [events].
        window: The longest time between the two events.
        neighbors: How many following events one is paired with.
        last: How many events of a row count: its last ones.
        place: int64 [2], row and event to go on at; changed.
        keys: uint64 [room], filled.

    Returns:
        How many keys were filled; `place[0]` is the number of rows when all are done.
    """
    used = 0
    rows = len(indptr) - 1
    row, at = place[0], place[1]
    while row < rows:
        end = indptr[row + 1]
        at = max(at, indptr[row], end - last)
        while at < end:
            if used + 2 * neighbors > len(keys):
                place[0], place[1] = row, at
                return used
            for following in range(at + 1, min(end, at + neighbors + 1)):
                if time[following] - time[at] > window:
                    break
                first, second = np.uint64(other[at]), np.uint64(other[following])
                if first != second:
                    keys[used] = (first << np.uint64(32)) | second
                    keys[used + 1] = (second << np.uint64(32)) | first
                    used += 2
            at += 1
        row += 1
    place[0], place[1] = row, 0
    return used
