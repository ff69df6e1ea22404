"""Machine code that sorts edges: by partition, by row, within a row; and merges edges of one pair."""

from __future__ import annotations

from typing import Any

import numpy as np

from sp_ray_ml._compiled import compiled

__all__ = ["count_into", "expand", "group", "merge_rows", "sort_rows"]

_SHORT = 24
"""Rows up to this length are sorted by insertion."""


@compiled()
def count_into(values: Any, counts: Any) -> None:
    """Add one to `counts` at each of the values."""
    for i in range(len(values)):
        counts[values[i]] += 1


@compiled()
def expand(indptr: Any, begin: int, rows: Any) -> None:
    """The row of each edge from edge `begin` on, until `rows` is full."""
    row = np.searchsorted(indptr, begin, side="right") - 1
    for i in range(len(rows)):
        while indptr[row + 1] <= begin + i:
            row += 1
        rows[i] = row


@compiled()
def group(keys: Any, base: int, indptr: Any, order: Any) -> None:
    """Stable counting sort: `order` has the places of the keys `base`, `base + 1`, …; `indptr` where each begins."""
    for i in range(len(keys)):
        indptr[keys[i] - base + 1] += 1
    for row in range(len(indptr) - 1):
        indptr[row + 1] += indptr[row]
    for i in range(len(keys)):
        row = keys[i] - base
        order[indptr[row]] = i
        indptr[row] += 1
    for row in range(len(indptr) - 1, 0, -1):
        indptr[row] = indptr[row - 1]
    indptr[0] = 0


@compiled()
def _before(first: int, second: int, other: Any, time: Any, weight: Any) -> bool:
    if other[first] != other[second]:
        return bool(other[first] < other[second])
    if len(time) and time[first] != time[second]:
        return bool(time[first] < time[second])
    return bool(len(weight) and weight[first] < weight[second])


@compiled()
def sort_rows(indptr: Any, order: Any, other: Any, time: Any, weight: Any) -> None:
    """Sort each row of `order` by the other node, then time, then weight (those that are not empty)."""
    space = np.empty(0, order.dtype)
    for row in range(len(indptr) - 1):
        begin, end = indptr[row], indptr[row + 1]
        length = end - begin
        if length <= _SHORT:
            for i in range(begin + 1, end):
                entry = order[i]
                at = i
                while at > begin and _before(entry, order[at - 1], other, time, weight):
                    order[at] = order[at - 1]
                    at -= 1
                order[at] = entry
            continue
        if len(space) < length:
            space = np.empty(length, order.dtype)
        width = 1
        while width < length:
            for low in range(0, length, 2 * width):
                middle, high = min(low + width, length), min(low + 2 * width, length)
                left, right = low, middle
                for at in range(low, high):
                    if left < middle and (
                        right >= high
                        or not _before(order[begin + right], order[begin + left], other, time, weight)
                    ):
                        space[at] = order[begin + left]
                        left += 1
                    else:
                        space[at] = order[begin + right]
                        right += 1
            order[begin:end] = space[:length]
            width *= 2


@compiled()
def merge_rows(
    indptr: Any,
    other: Any,
    time: Any,
    weight: Any,
    lengths: Any,
    out: Any,
    first: Any,
    total: Any,
    events: Any,
) -> int:
    """One edge for the events of a pair: its first time, the sum of its weights, how many they are.

    Args:
        indptr: int64 [rows + 1].
        other: [events], the other node, ascending in a row.
        time: int64 [events], or empty.
        weight: [events], or empty.
        lengths: int64 [rows], filled: edges of each row.
        out: [events], filled: the other node of each edge.
        first: int64 [events], or empty; filled.
        total: float64 [events], filled; summed in the order of time and weight, whatever the order of events.
        events: int64 [events], filled.

    Returns:
        How many edges there are.
    """
    edge = -1
    for row in range(len(indptr) - 1):
        before = edge
        for i in range(indptr[row], indptr[row + 1]):
            amount = np.float64(weight[i]) if len(weight) else 1.0
            if edge > before and out[edge] == other[i]:
                total[edge] += amount
                events[edge] += 1
                continue
            edge += 1
            out[edge] = other[i]
            total[edge] = amount
            events[edge] = 1
            if len(first):
                first[edge] = time[i]
        lengths[row] = edge - before
    return edge + 1
