"""The machine code beside sampling: edges by destination, whether pairs are linked, and draws of nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int32, int64, uint64
from numba import types as t

from sp_ray_ml._compiled import compiled
from sp_ray_ml.graph._compiled import high_product, read, write
from sp_ray_ml.graph._sampling_kernel import GOLDEN, mix, unit

__all__ = ["by_destination", "draw_below", "draw_weighted", "linked"]


def _sort_signature(index: Any, out: Any) -> Any:
    return t.void(read(index), read(index), write(int64), write(out), write(int64))


@compiled(*(_sort_signature(int64, out) for out in (int32, int64)))
def by_destination(source: Any, destination: Any, indptr: Any, indices: Any, edge: Any) -> None:
    """Counting sort of edges by destination, in their order within one; `indptr` has zeros and an entry too many.

    `indptr` is [destinations + 2]: what ends as `indptr[:-1]`; `edge` is each edge's place before.
    """
    for e in range(destination.shape[0]):
        indptr[destination[e] + 2] += 1
    for row in range(2, indptr.shape[0]):
        indptr[row] += indptr[row - 1]
    for e in range(destination.shape[0]):
        at = indptr[destination[e] + 1]
        indptr[destination[e] + 1] = at + 1
        indices[at] = source[e]
        edge[at] = e


def _linked_signature(index: Any) -> Any:
    return t.void(read(int64), read(index), read(int64), read(int64), write(t.boolean))


@compiled(_linked_signature(int32), _linked_signature(int64))
def linked(indptr: Any, indices: Any, source: Any, destination: Any, found: Any) -> None:
    """Whether there is an edge of each pair."""
    for i in range(source.shape[0]):
        found[i] = False
        for e in range(indptr[destination[i]], indptr[destination[i] + 1]):
            if indices[e] == source[i]:
                found[i] = True
                break


@compiled(t.void(uint64, int64, uint64, write(int64)))
def draw_below(key: Any, first: Any, bound: Any, out: Any) -> None:
    """Numbers below `bound`, uniformly: the draws `first`, `first + 1`, … of a key."""
    for i in range(out.shape[0]):
        out[i] = np.int64(high_product(mix(key + np.uint64(first + i) * GOLDEN), bound))


@compiled(t.void(uint64, int64, read(t.float64), write(int64)))
def draw_weighted(key: Any, first: Any, so_far: Any, out: Any) -> None:
    """Places in an array of summed weights, by weight: the draws `first`, `first + 1`, … of a key."""
    for i in range(out.shape[0]):
        wanted = unit(mix(key + np.uint64(first + i) * GOLDEN)) * so_far[so_far.shape[0] - 1]
        low, high = 0, so_far.shape[0] - 1
        while low < high:
            middle = (low + high) >> 1
            if so_far[middle] < wanted:
                low = middle + 1
            else:
                high = middle
        out[i] = low
