"""`top_k`: the best k items of each row of a block of scores, without those a row excludes."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import ConfigError, DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["check_k", "top_k"]

_WORTH_A_THREAD = 1 << 18  # scores; below it starting a thread takes longer than the work


def top_k(
    scores: npt.NDArray[Any], k: int, exclude: csr_array[Any] | None = None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Find the k highest scores of each row. Equal scores rank by the lower item index.

    Args:
        scores: `[rows, items]`; anything but float32 is rounded to it. An item at minus infinity is no candidate.
        k: How many to find.
        exclude: `[rows, items]`; the entries stored in a row, whatever their value, never appear in its result.

    Returns:
        Item indices, int32 `[rows, k]`, best first, and their scores, float32 `[rows, k]`. A row with fewer than k
        candidates ends in index -1 and score minus infinity.

    Raises:
        ConfigError: k is below 1.
        DataError: A score is NaN, or the shapes do not fit each other.
    """
    from sp_ray_ml.metrics._topk_kernel import NO_NAN, best_of_rows

    if scores.ndim != 2:
        raise DataError(f"scores have shape {scores.shape}, expected [rows, items]")
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    values = np.ascontiguousarray(scores, dtype=np.float32)
    rows, num_items = values.shape
    indptr, excluded = _sorted_rows(exclude, values.shape)
    best = np.full((rows, k), -1, dtype=np.int32)
    best_scores = np.full((rows, k), -np.inf, dtype=np.float32)

    def fill(first: int, last: int) -> int:
        return int(best_of_rows(values, indptr, excluded, first, last, best, best_scores))

    parts = max(1, min(len(os.sched_getaffinity(0)), rows, values.size // _WORTH_A_THREAD))
    cuts = [rows * part // parts for part in range(parts + 1)]
    if parts == 1:
        found = [fill(0, rows)]
    else:
        with ThreadPoolExecutor(parts) as pool:
            found = list(pool.map(fill, cuts[:-1], cuts[1:]))
    bad = [row for row in found if row != NO_NAN]
    if bad:
        column = int(np.flatnonzero(np.isnan(values[bad[0]]))[0])
        raise DataError(f"the score of row {bad[0]}, item {column} of {num_items} is not a number (NaN)")
    return best, best_scores


def check_k(k: int, num_items: int) -> None:
    """Raise `ConfigError` unless `k` items can be chosen of `num_items`."""
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    if k > num_items:
        raise ConfigError(
            f"k = {k} is larger than the catalogue, which has {num_items} items",
            hint=f"Choose a k of at most {num_items}",
        )


def _sorted_rows(
    exclude: csr_array[Any] | None, shape: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    if exclude is None:
        return np.zeros(shape[0] + 1, dtype=np.int64), np.empty(0, dtype=np.int32)
    if exclude.shape != shape:
        raise DataError(f"exclude has shape {exclude.shape}, the scores {shape}")
    if not exclude.has_sorted_indices:
        exclude = exclude.sorted_indices()
    indptr = np.ascontiguousarray(exclude.indptr, dtype=np.int64)
    return indptr, np.ascontiguousarray(exclude.indices, dtype=np.int32)
