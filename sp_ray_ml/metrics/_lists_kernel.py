"""The machine code that measures ranked lists: one pass over the rows of each user, predictions and truth together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float64, int32, int64, njit, void

from sp_ray_ml._compiled import compiled

__all__ = ["TRUTH", "measure_lists", "pairwise_distance"]

TRUTH = np.nan
"""The key of a row that is a test item. Others are places in the list: the lower, the better."""

_SHORT = 32  # test items that are sorted by insertion
_FEW = 16  # test items that are looked through one after the other


@njit(nogil=True)
def _distinct(values: Any, count: int) -> int:
    """Sort the first `count` values in place, leave each once; return how many there are."""
    if count > _SHORT:
        values[:count] = np.sort(values[:count])
    else:
        for i in range(1, count):
            value, at = values[i], i
            while at > 0 and values[at - 1] > value:
                values[at] = values[at - 1]
                at -= 1
            values[at] = value
    kept = 0
    for i in range(count):
        if i == 0 or values[i] != values[kept - 1]:
            values[kept] = values[i]
            kept += 1
    return kept


@compiled(
    int64(
        int64[::1], int64[::1], int32[::1], float64[::1], int64, int64, int64[::1], float64[::1], float64[::1],
        float64[::1], float64[::1], float64[::1], boolean, float64[:, :, ::1], int64[:, ::1], int32[:, ::1],
        int64[::1],
    )
)  # fmt: skip
def measure_lists(
    indptr: Any,
    order: Any,
    items: Any,
    keys: Any,
    first: int,
    last: int,
    ks: Any,
    discounts: Any,
    ideal: Any,
    popularity: Any,
    information: Any,
    tail: Any,
    need_truth: Any,
    values: Any,
    shown: Any,
    lists: Any,
    counted: Any,
) -> int:
    """Measure the users `first` to `last`; return the first one with an item twice in its list, or -1.

    Args:
        indptr, order: Rows of each user.
        items, keys: Of each row; keys of test items are `TRUTH`.
        first, last: Users.
        ks: Lengths, ascending.
        discounts, ideal: [depth]; 1 / log2(i + 1), and their running sum.
        popularity, information, tail: Of each item; empty where they are not known.
        need_truth: Whether users without a test item do not count.
        values: Filled, [metrics, k, users].
        shown: Added to, [k, items].
        lists: Filled, [users, depth], -1 where a list ends.
        counted: Filled, [users]: one more than a user's test items, 0 for who does not count.
    """
    depth = ks[-1]
    room = 0
    for user in range(first, last):
        room = max(room, indptr[user + 1] - indptr[user])
    listed, places, truth = np.empty(room, np.int32), np.empty(room), np.empty(room, np.int32)
    for user in range(first, last):
        n, m = 0, 0
        ordered = True
        for at in range(indptr[user], indptr[user + 1]):
            row = order[at]
            key = keys[row]
            if key != key:  # noqa: PLR0124
                truth[m] = items[row]
                m += 1
            else:
                listed[n] = items[row]
                places[n] = key
                if n > 0 and key < places[n - 1]:
                    ordered = False
                n += 1
        for i in range(depth):
            lists[user, i] = -1
        counted[user] = 0
        if m == 0 and (need_truth or n == 0):
            continue
        if not ordered:
            best = np.argsort(places[:n], kind="mergesort")
            sorted_items = listed[:n][best]
            for i in range(n):
                listed[i] = sorted_items[i]
        n = min(n, depth)
        m = _distinct(truth, m)
        counted[user] = m + 1
        hits, gained, precisions = 0, 0.0, 0.0
        popular, informed, rare = 0.0, 0.0, 0.0
        found = -1
        at_k = 0
        for i in range(depth):
            if i < n:
                item = listed[i]
                for other in range(i):
                    if listed[other] == item:
                        return user
                lists[user, i] = item
                hit = False
                if m <= _FEW:
                    for other in range(m):
                        if truth[other] == item:
                            hit = True
                else:
                    place = np.searchsorted(truth[:m], item)
                    hit = place < m and truth[place] == item
                if hit:
                    hits += 1
                    gained += discounts[i]
                    precisions += hits / (i + 1)
                    if found < 0:
                        found = i
                if len(popularity):
                    popular += popularity[item]
                    informed += information[item]
                    rare += tail[item]
                for j in range(at_k, len(ks)):
                    shown[j, item] += 1
            if i + 1 == ks[at_k]:
                k = ks[at_k]
                if m > 0:
                    values[0, at_k, user] = hits / m
                    values[1, at_k, user] = gained / ideal[min(k, m) - 1]
                    values[2, at_k, user] = hits / k
                    values[3, at_k, user] = 1.0 if hits else 0.0
                    values[4, at_k, user] = 1 / (found + 1) if found >= 0 else 0.0
                    values[5, at_k, user] = precisions / min(k, m)
                if len(popularity):
                    length = max(1, min(k, n))
                    values[6, at_k, user] = popular / length
                    values[7, at_k, user] = informed / length
                    values[8, at_k, user] = rare / length
                at_k += 1
    return -1


@compiled(void(int32[:, ::1], float64[:, ::1], int64[::1], float64[:, ::1]))
def pairwise_distance(lists: Any, vectors: Any, ks: Any, out: Any) -> None:
    """Fill `out` [k, users] with the mean of 1 - u·v over the pairs of a list's first k items; 0 without a pair.

    Args:
        lists: [users, depth], -1 where a list ends.
        vectors: Of each item, of length 1.
        ks: Lengths, ascending.
        out: Filled.
    """
    for user in range(lists.shape[0]):
        distances, pairs, at_k = 0.0, 0, 0
        for i in range(ks[-1]):
            item = lists[user, i]
            if item >= 0:
                for j in range(i):
                    other = lists[user, j]
                    alike = 0.0
                    for d in range(vectors.shape[1]):
                        alike += vectors[item, d] * vectors[other, d]
                    distances += 1 - alike
                    pairs += 1
            if i + 1 == ks[at_k]:
                out[at_k, user] = distances / max(1, pairs)
                at_k += 1
