"""The machine code of a sparse matrix (CSR) times a dense one, a range of rows at a time."""

from __future__ import annotations

from typing import Any

from numba import float32, int32, int64, void

from sp_ray_ml.graph._compiled import compiled, prefetch, read, write

__all__ = ["multiply_rows"]

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
