"""The machine code that measures ranked lists: one pass over each user's predictions and test items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float64, int32, int64, void

from sp_ray_ml._compiled import compiled

__all__ = ["measure_lists", "pairwise_distance"]


@compiled(
    int64(
        int64[::1], int32[::1], float64[::1], int64[::1], int32[::1], int64, int64, int64, int64[::1], float64[::1],
        float64[::1], float64[:, ::1], boolean, int64[:, ::1], int64[::1], int64[::1], float64[:, :, ::1],
        int64[:, :, ::1], int32[:, ::1], int64[::1],
    )
)  # fmt: skip
def measure_lists(
    indptr: Any,
    items: Any,
    keys: Any,
    truth_indptr: Any,
    truth: Any,
    base: int,
    first: int,
    last: int,
    ks: Any,
    discounts: Any,
    ideal: Any,
    facts: Any,
    need_truth: bool,
    groups: Any,
    met: Any,
    wanted: Any,
    values: Any,
    shown: Any,
    lists: Any,
    counted: Any,
) -> int:
    """Measure the users `first` to `last`; return the first one with an item twice in its list, or -1.

    Args:
        indptr, items, keys: Each user's predictions; the lower the key, the better.
        truth_indptr, truth: Each user's test items.
        base: Number of user 0 among all that there are.
        first, last: Users.
        ks: Lengths, ascending.
        discounts, ideal: [depth]; 1 / log2(i + 1), and their running sum.
        facts: [items, 3]: popularity, information, tail; no items where they are not known.
        need_truth: Whether users without a test item do not count.
        groups: [columns, last - first]: the group of `shown` that a user is in beside the first; -1 for none.
        met, wanted: [items]: for this function alone, 0 before its first call.
        values: Filled, [metrics, k, last - first]; lists and counted likewise.
        shown: Added to, [groups, k, items]: lists that have an item between one length and the next.
        lists: Filled, [users, depth], -1 where a list ends.
        counted: Filled, [users]: one more than a user's test items, 0 for who does not count.
    """
    depth = ks[-1]
    for user in range(first, last):
        begin, end = indptr[user], indptr[user + 1]
        row = user - first
        mark = base + user + 1
        m = 0
        for at in range(truth_indptr[user], truth_indptr[user + 1]):
            if wanted[truth[at]] != mark:
                wanted[truth[at]] = mark
                m += 1
        for i in range(depth):
            lists[row, i] = -1
        counted[row] = 0
        if m == 0 and (need_truth or begin == end):
            continue
        counted[row] = m + 1
        n = min(end - begin, depth)
        ordered = True
        for at in range(begin + 1, end):
            if keys[at] < keys[at - 1]:
                ordered = False
        if ordered:
            for i in range(n):
                lists[row, i] = items[begin + i]
        else:
            best = np.argsort(keys[begin:end], kind="mergesort")
            for i in range(n):
                lists[row, i] = items[begin + best[i]]
        hits, gained, precisions = 0, 0.0, 0.0
        popular, informed, rare = 0.0, 0.0, 0.0
        found = -1
        at_k = 0
        for i in range(depth):
            if i < n:
                item = lists[row, i]
                if met[item] == mark:
                    return user
                met[item] = mark
                if wanted[item] == mark:
                    hits += 1
                    gained += discounts[i]
                    precisions += hits / (i + 1)
                    if found < 0:
                        found = i
                if len(facts):
                    popular += facts[item, 0]
                    informed += facts[item, 1]
                    rare += facts[item, 2]
                shown[0, at_k, item] += 1
                for column in range(groups.shape[0]):
                    if groups[column, row] >= 0:
                        shown[groups[column, row], at_k, item] += 1
            if i + 1 == ks[at_k]:
                k = ks[at_k]
                if m > 0:
                    values[0, at_k, row] = hits / m
                    values[1, at_k, row] = gained / ideal[min(k, m) - 1]
                    values[2, at_k, row] = hits / k
                    values[3, at_k, row] = 1.0 if hits else 0.0
                    values[4, at_k, row] = 1 / (found + 1) if found >= 0 else 0.0
                    values[5, at_k, row] = precisions / min(k, m)
                if len(facts):
                    length = max(1, min(k, n))
                    values[6, at_k, row] = popular / length
                    values[7, at_k, row] = informed / length
                    values[8, at_k, row] = rare / length
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
