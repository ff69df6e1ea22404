"""`nearest`: the nearest of many vectors, exactly, by products of blocks in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph.graph import node_type
from sp_ray_ml.metrics.topk import top_k

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "METRICS",
    "Metric",
    "check_k",
    "check_metric",
    "check_vectors",
    "excluded",
    "lengths",
    "nearest",
    "read_vectors",
]

Metric = Literal["cosine", "dot", "l2"]
METRICS = ("cosine", "dot", "l2")

# A product is of float64 and always of one shape, the rest of it zeros: so each of its entries is summed in the same
# order, whatever is asked for beside it. BLAS adds otherwise at a shape's edges; this many rows, and multiples of as many
# columns, have none. In float32, OpenBLAS adds in two ways even within them, on processors without AVX-512.
_ROWS = 128
_COLUMNS = 2_048  # with as many scores as one thread looks through as fast as two
_BLOCK_BYTES = 16 << 20
_WINDOW = 32  # products that one block of vectors is read for


def nearest(
    queries: NDArray[Any],
    vectors: NDArray[Any],
    k: int,
    *,
    metric: Metric = "cosine",
    method: Literal["exact", "approximate"] = "exact",
    exclude: NDArray[Any] | csr_array[Any] | None = None,
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Find the k nearest of some vectors to each query. Equally near ones rank by the lower index.

    Exact in memory of some 50 MB beside the arguments, which may be memory-mapped, and the result. A query's result
    does not depend on what else is asked for, to the last bit (on one machine, with one number of BLAS threads).

    Args:
        queries: Numbers [queries, width].
        vectors: Numbers [vectors, width]. All are taken as float32, and multiplied in float64.
        k: How many to find.
        metric: `cosine` of the angle (0 where a vector is zero), `dot` product, or `l2`, the Euclidean distance.
        method: `exact`, or `approximate` by an index that is built for this call; see `NearestIndex`.
        exclude: What a query never finds: one index each, [queries], such as itself; or a sparse matrix
            [queries, vectors] whose stored entries are left out.

    Returns:
        Indices, int32 [queries, k] (int64 where there are more than 2^31 - 1 vectors), the nearest first, and their
        cosines, products or distances, float32. Where fewer than k are left, the rest is index -1 and minus infinity,
        of `l2` infinity.

    Raises:
        ConfigError: k is below 1 or larger than the number of vectors, or no such metric or method.
        DataError: The widths differ, a number is NaN or infinite, or `exclude` does not fit.
        MissingDependencyError: `approximate` without the extra `ann`.
    """
    if method not in ("exact", "approximate"):
        raise ConfigError(f"{method!r} is none of exact, approximate", where="method")
    check_vectors(queries, "queries")
    check_vectors(vectors, "vectors")
    if queries.shape[1] != vectors.shape[1]:
        raise DataError(
            f"queries have width {queries.shape[1]}, the vectors {vectors.shape[1]}", where="queries"
        )
    check_k(k, len(vectors))
    check_metric(metric)
    if method == "approximate":
        from sp_ray_ml.graph._nearest_index import NearestIndex

        return NearestIndex.build(vectors, metric=metric).search(queries, k, exclude=exclude)
    return _exact(queries, vectors, k, metric, excluded(exclude, (len(queries), len(vectors))))


def check_vectors(vectors: NDArray[Any], where: str) -> None:
    """Refuse what is no matrix of numbers."""
    if getattr(vectors, "ndim", 0) != 2 or vectors.dtype.kind not in "fiu" or not vectors.shape[1]:
        shape, kind = getattr(vectors, "shape", None), getattr(vectors, "dtype", type(vectors).__name__)
        raise DataError(f"expected numbers [rows, width], got {kind} {shape}", where=where)


def check_metric(metric: str) -> None:
    """Refuse what is no metric."""
    if metric not in METRICS:
        raise ConfigError(f"{metric!r} is none of {', '.join(METRICS)}", where="metric")


def check_k(k: int, count: int) -> None:
    """Refuse to find more vectors than there are."""
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}", where="k")
    if k > count:
        raise ConfigError(f"k = {k}, and there are {count} vectors", where="k", hint=f"Choose a k of at most {count}" if count else None)  # fmt: skip


def lengths(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """The length of each vector."""
    found: NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return found


def _unit(vectors: NDArray[Any]) -> NDArray[np.float32]:
    """Vectors of length 1, float32; zeros stay."""
    scale = (1 / np.maximum(lengths(vectors), np.finfo(np.float32).tiny)).astype(np.float32)
    scaled: NDArray[np.float32] = vectors * scale[:, None]
    return scaled


def _exact(
    queries: NDArray[Any], vectors: NDArray[Any], k: int, metric: Metric, left_out: _Excluded | None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    asked, count, width = len(queries), len(vectors), vectors.shape[1]
    columns = min(
        _COLUMNS, max(_ROWS, (_BLOCK_BYTES // (8 * width)) // _ROWS * _ROWS), -(-count // _ROWS) * _ROWS
    )
    best = np.full((asked, k), -1, node_type(count))
    scores = np.full((asked, k), -np.inf, np.float32)
    block = np.zeros((columns, width))
    product = np.empty((_ROWS, columns))
    scored = np.empty((_ROWS, k + columns), np.float32)
    for first in range(0, asked, _ROWS * _WINDOW):
        window = read_vectors(queries, first, first + _ROWS * _WINDOW, metric, "query")
        groups = [slice(row, row + _ROWS) for row in range(0, len(window), _ROWS)]
        padded = np.zeros((len(groups) * _ROWS, width))
        padded[: len(window)] = window
        outs = [None if left_out is None else left_out.of(first + g.start, first + g.stop) for g in groups]
        for begin in range(0, count, columns):
            part = read_vectors(vectors, begin, begin + columns, metric, "vector")
            block[: len(part)], block[len(part) :] = part, 0
            for group, out in zip(groups, outs, strict=True):
                np.matmul(padded[group], block.T, out=product)
                if metric == "l2":
                    _to_negative_squares(product, padded[group], block)
                scored[:, k:] = product
                scored[:, k + len(part) :] = -np.inf
                if out is not None:
                    out.apply(scored[:, k:], begin)
                rows = slice(first + group.start, min(first + group.stop, asked))
                some = scored[: rows.stop - rows.start]
                some[:, :k] = scores[rows]  # first, since they have the lower indices
                found, scores[rows] = top_k(some, k)
                found = found.astype(best.dtype)
                known = np.take_along_axis(best[rows], np.clip(found, 0, k - 1), axis=1)
                best[rows] = np.where(found < 0, -1, np.where(found < k, known, found - k + begin))
    return best, np.sqrt(-scores) if metric == "l2" else scores


def read_vectors(
    vectors: NDArray[Any], begin: int, end: int, metric: Metric, what: str
) -> NDArray[np.float32]:
    """Some rows, checked; for `cosine` of length 1."""
    some = np.asarray(vectors[begin:end], np.float32)
    if not np.isfinite(some).all():
        row = int(np.flatnonzero(~np.isfinite(some).all(axis=1))[0])
        raise DataError(
            f"{what} {begin + row} has a number that is NaN or infinite", hint="Check what made it"
        )
    return _unit(some) if metric == "cosine" else some


def _to_negative_squares(product: NDArray[Any], queries: NDArray[Any], vectors: NDArray[Any]) -> None:
    """-|q - v|² of each query and vector, from their products. The squares differ by less than float32 tells apart."""
    product *= 2
    product -= np.einsum("ij,ij->i", queries, queries)[:, None]
    product -= np.einsum("ij,ij->i", vectors, vectors)
    np.minimum(product, 0, out=product)


class _Excluded:
    """What queries never find, as rows of a sparse matrix."""

    def __init__(self, indptr: NDArray[Any], indices: NDArray[Any]) -> None:
        self.indptr, self.indices = indptr, indices

    def of(self, first: int, last: int) -> _Pairs:
        bounds = self.indptr[first : last + 1]
        rows = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
        return _Pairs(rows, self.indices[bounds[0] : bounds[-1]])


class _Pairs:
    """Rows and columns of a block of scores, by column."""

    def __init__(self, rows: NDArray[Any], columns: NDArray[Any]) -> None:
        order = np.argsort(columns, kind="stable")
        self.rows, self.columns = rows[order], columns[order]

    def apply(self, scores: NDArray[np.float32], begin: int) -> None:
        first, last = np.searchsorted(self.columns, [begin, begin + scores.shape[1]])
        scores[self.rows[first:last], self.columns[first:last] - begin] = -np.inf


def excluded(exclude: Any, shape: tuple[int, int]) -> _Excluded | None:
    """What queries never find, checked."""
    if exclude is None:
        return None
    if getattr(exclude, "ndim", 0) == 1:
        if exclude.dtype.kind not in "iu" or len(exclude) != shape[0]:
            raise DataError(f"one index for each of {shape[0]} queries, got {exclude.dtype} {exclude.shape}", where="exclude")  # fmt: skip
        if len(exclude) and not 0 <= exclude.min() <= exclude.max() < shape[1]:
            raise DataError(
                f"indices {exclude.min()} to {exclude.max()} of {shape[1]} vectors", where="exclude"
            )
        return _Excluded(np.arange(shape[0] + 1), exclude)
    if exclude.shape != shape:
        raise DataError(f"shape {exclude.shape}, expected {shape}: queries, vectors", where="exclude")
    rows = exclude.tocsr()
    return _Excluded(rows.indptr, rows.indices)
