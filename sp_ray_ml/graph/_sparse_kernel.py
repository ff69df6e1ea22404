"""The machine code of a sparse matrix (CSR) times a dense one, a range of rows at a time."""

from __future__ import annotations

from typing import Any

from numba import float32, int32, int64, void

from sp_ray_ml._compiled import compiled
from sp_ray_ml.graph._compiled import prefetch, read, write

__all__ = ["dot_pairs", "multiply_rows"]

# The rows of the dense matrix lie anywhere in memory: asked for this many entries ahead, they are there when their
# turn comes. 16 floats are a cache line.
_AHEAD, _LINE = 12, 16


@compiled(
    void(read(int64), read(int32), read(float32), read(float32, 2), int64, int64, write(float32, 2)),
)
def multiply_rows(
    indptr: Any, indices: Any, values: Any, dense: Any, first: int, last: int, out: Any
) -> None:
    """out[first:last] = matrix[first:last] · dense, each row's entries added in their order, four at a time."""
    width, entries = dense.shape[1], len(indices)
    flat = dense.ravel()
    for row in range(first, last):
        start, stop = indptr[row], indptr[row + 1]
        target = out[row]
        target[:] = 0
        four = start + (stop - start) // 4 * 4
        for at in range(start, four, 4):
            for k in range(at + _AHEAD, min(at + _AHEAD + 4, entries)):
                for line in range(0, width, _LINE):
                    prefetch(flat, int64(indices[k]) * width + line)
            a, b, c, d = values[at], values[at + 1], values[at + 2], values[at + 3]
            w, x = dense[indices[at]], dense[indices[at + 1]]
            y, z = dense[indices[at + 2]], dense[indices[at + 3]]
            for column in range(width):
                target[column] += a * w[column] + b * x[column] + c * y[column] + d * z[column]
        for at in range(four, stop):
            a, w = values[at], dense[indices[at]]
            for column in range(width):
                target[column] += a * w[column]


@compiled(void(read(float32, 2), read(float32, 2), read(int64), read(int64), write(float32)))
def dot_pairs(left: Any, right: Any, row: Any, column: Any, out: Any) -> None:
    """out[e] = left[row[e]] · right[column[e]]."""
    width, pairs = left.shape[1], len(row)
    flat = right.ravel()
    for at in range(pairs):
        if at + _AHEAD < pairs:
            for line in range(0, width, _LINE):
                prefetch(flat, column[at + _AHEAD] * width + line)
        one, other = left[row[at]], right[column[at]]
        # Four sums do not wait for one another.
        a, b, c, d = float32(0), float32(0), float32(0), float32(0)
        four = width // 4 * 4
        for k in range(0, four, 4):
            a += one[k] * other[k]
            b += one[k + 1] * other[k + 1]
            c += one[k + 2] * other[k + 2]
            d += one[k + 3] * other[k + 3]
        for k in range(four, width):
            a += one[k] * other[k]
        out[at] = (a + b) + (c + d)
