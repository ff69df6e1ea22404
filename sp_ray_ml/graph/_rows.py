"""The rules of edges, in memory: sorted rows, and one edge for the events of a pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._row_kernels import group, merge_rows, sort_rows

__all__ = ["NEVER", "UNTIMED", "MergedRows", "SortedRows", "merged", "sorted_rows"]

NEVER = np.iinfo(np.int64).max
"""First event's time of a node without events: after all others in the canonical order."""
UNTIMED = NEVER - 1
"""First event's time of a node whose events have none."""

_NO_TIME, _NO_WEIGHT = np.empty(0, np.int64), np.empty(0, np.float32)


@dataclass(frozen=True)
class SortedRows:
    """Events by row, and in each by the other node, time and weight: the same however the events came.

    Attributes:
        indptr: int64 [rows + 1].
        other: [events], the other node.
        time: int64 [events], or None.
        weight: [events], or None.
    """

    indptr: NDArray[np.int64]
    other: NDArray[Any]
    time: NDArray[np.int64] | None
    weight: NDArray[Any] | None


@dataclass(frozen=True)
class MergedRows:
    """One edge for the events of a pair.

    Attributes:
        indptr: int64 [rows + 1].
        other: [edges], the other node, ascending in a row.
        time: int64 [edges] of the first event, or None.
        total: float64 [edges], the sum of the weights, taken in the order of time and weight; without weights the
            number of events.
        events: int64 [edges], how many there are.
    """

    indptr: NDArray[np.int64]
    other: NDArray[Any]
    time: NDArray[np.int64] | None
    total: NDArray[np.float64]
    events: NDArray[np.int64]


def sorted_rows(
    row: NDArray[Any],
    other: NDArray[Any],
    time: NDArray[np.int64] | None,
    weight: NDArray[Any] | None,
    *,
    base: int,
    num_rows: int,
) -> SortedRows:
    """Sort events by row, other node, time and weight.

    Args:
        row: [events], between `base` and `base + num_rows`.
        other: [events].
        time: [events], or None.
        weight: [events], finite, or None.
        base: Number of the first row.
        num_rows: How many rows.
    """
    indptr, order = np.zeros(num_rows + 1, np.int64), np.empty(len(row), np.int64)
    group(row, base, indptr, order)
    # The columns are brought together by row first: what is compared then lies side by side.
    other = other[order]
    time = None if time is None else time[order]
    weight = None if weight is None else weight[order]
    order = np.arange(len(row))
    sort_rows(indptr, order, other, _or(time, _NO_TIME), _or(weight, _NO_WEIGHT))
    return SortedRows(
        indptr,
        other[order],
        None if time is None else time[order],
        None if weight is None else weight[order],
    )


def merged(rows: SortedRows) -> MergedRows:
    """One edge for the events of a pair."""
    count = len(rows.other)
    indptr, other, total = np.zeros_like(rows.indptr), np.empty_like(rows.other), np.empty(count, np.float64)
    first = np.empty(0 if rows.time is None else count, np.int64)
    events = np.empty(count, np.int64)
    edges = merge_rows(
        rows.indptr, rows.other, _or(rows.time, _NO_TIME), _or(rows.weight, _NO_WEIGHT),
        indptr[1:], other, first, total, events,
    )  # fmt: skip
    np.cumsum(indptr, out=indptr)
    return MergedRows(
        indptr, other[:edges], None if rows.time is None else first[:edges], total[:edges], events[:edges]
    )


def _or(array: NDArray[Any] | None, absent: NDArray[Any]) -> NDArray[Any]:
    return absent if array is None else array
