"""The machine code of sorted runs of scores: they are merged, and areas under curves summed up in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float32, float64, int64, void

from sp_ray_ml._compiled import compiled

__all__ = ["merge_runs", "sum_curves"]

_HALF = 26


@compiled(
    int64(float32[::1], int64[::1], float32[::1], int64[::1], float32[::1], int64[::1]),
    int64(float64[::1], int64[::1], float64[::1], int64[::1], float64[::1], int64[::1]),
)
def merge_runs(a: Any, a_counts: Any, b: Any, b_counts: Any, out: Any, out_counts: Any) -> int:
    """Merge two ascending runs of distinct scores into a third, and return how long it is; equal ones are added up."""
    i, j, n = 0, 0, 0
    while i < len(a) or j < len(b):
        if j == len(b) or (i < len(a) and a[i] < b[j]):
            out[n], out_counts[n] = a[i], a_counts[i]
            i += 1
        elif i == len(a) or b[j] < a[i]:
            out[n], out_counts[n] = b[j], b_counts[j]
            j += 1
        else:
            out[n], out_counts[n] = a[i], a_counts[i] + b_counts[j]
            i += 1
            j += 1
        n += 1
    return n


@compiled(
    void(float32[::1], int64[::1], float32[::1], int64[::1], int64[::1], int64[::1], int64[:, ::1]),
    void(float64[::1], int64[::1], float64[::1], int64[::1], int64[::1], int64[::1], int64[:, ::1]),
)
def sum_curves(
    down: Any, down_counts: Any, up: Any, up_counts: Any, totals: Any, below: Any, sums: Any
) -> None:
    """Go through the next distinct scores of negatives (`down`) and positives (`up`), ascending.

    Every sum is one of whole numbers in two halves of 26 bits, which hold up to 2^36 rows.

    Args:
        down, down_counts, up, up_counts: Scores of each kind and how often each is there.
        totals: [2], all negatives and positives that there are.
        below: [2], those that were before; added to.
        sums: [4, 2], high and low halves; added to. Positives times twice the negatives below them, ties once;
            precisions of positives; squared shares of the negatives below positives, and of the positives above
            negatives, the shares in units of 2^-52.
    """
    mask = (1 << _HALF) - 1
    unit = 2.0 ** (2 * _HALF)
    i, j = 0, 0
    while i < len(down) or j < len(up):
        negative, positive = 0, 0
        if j == len(up) or (i < len(down) and down[i] <= up[j]):
            negative = down_counts[i]
        if i == len(down) or (j < len(up) and up[j] <= down[i]):
            positive = up_counts[j]
        if positive:
            j += 1
            weight = 2 * below[0] + negative
            sums[0, 0] += positive * (weight >> _HALF)
            sums[0, 1] += positive * (weight & mask)
            right, wrong = totals[1] - below[1], totals[0] - below[0]
            share = int64(np.rint(right / (right + wrong) * unit))
            sums[1, 0] += positive * (share >> _HALF)
            sums[1, 1] += positive * (share & mask)
            v = weight / (2 * max(1, totals[0]))
            share = int64(np.rint(v * v * unit))
            sums[2, 0] += positive * (share >> _HALF)
            sums[2, 1] += positive * (share & mask)
        if negative:
            i += 1
            w = 1 - (below[1] + positive / 2) / max(1, totals[1])
            share = int64(np.rint(w * w * unit))
            sums[3, 0] += negative * (share >> _HALF)
            sums[3, 1] += negative * (share & mask)
        below[0] += negative
        below[1] += positive
