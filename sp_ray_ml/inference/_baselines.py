"""Fitted baselines: the scorers that `Popularity` and `Ease` turn into."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack
from scipy.sparse import csr_array

from sp_ray_ml.errors import DataError, ResourceError

__all__ = ["EaseScorer", "PopularityScorer"]

_BLOCK = 1024  # columns or rows handled at a time, so that no second items × items array is needed


class PopularityScorer:
    """Every user's score of an item is its number of training events.

    Args:
        train: `[users, items]`; values are numbers of events.
    """

    def __init__(self, train: csr_array[Any]) -> None:
        self.num_users, self.num_items = train.shape
        counts = np.bincount(train.indices, weights=train.data.astype(np.float64), minlength=self.num_items)
        self._scores = counts.astype(np.float32)

    def score(self, users: npt.NDArray[np.integer[Any]], /) -> npt.NDArray[np.float32]:
        """Float32 `[len(users), num_items]`; a read-only view of one row."""
        return np.broadcast_to(self._scores, (len(users), self.num_items))


class EaseScorer:
    """Scores X B with B as in `Ease.fit`. B is float32 `[items, items]`; P is computed in float64, in place.

    Args:
        train: `[users, items]`; only which entries are stored counts.
        regularization: λ.
        max_items: Refuse more items than this.

    Raises:
        ResourceError: There are more than `max_items` items, or not the memory for these.
    """

    def __init__(self, train: csr_array[Any], regularization: float, max_items: int) -> None:
        self.num_users, self.num_items = train.shape
        if self.num_items > max_items:
            raise ResourceError(
                f"EASE is capped at {max_items:,} items and the catalogue has {self.num_items:,}: it would take "
                f"{12 * self.num_items**2 / 1e9:,.1f} GB, which grows with the square of the items, and time that "
                "grows with the cube",
                hint="Raise max_items of the baseline if this machine has the memory",
            )
        if not train.has_canonical_format:
            train = train.copy()
            train.sum_duplicates()
        ones = np.ones(train.nnz, dtype=np.float32)
        self._history = csr_array((ones, train.indices, train.indptr), shape=train.shape)
        try:
            self._weights = _weights(_inverse(self._history, regularization))
        except MemoryError as error:
            raise ResourceError(f"EASE of {self.num_items:,} items does not fit: {error}") from error

    def score(self, users: npt.NDArray[np.integer[Any]], /) -> npt.NDArray[np.float32]:
        """Float32 `[len(users), num_items]`; each row is computed on its own."""
        return np.asarray(self._history[users] @ self._weights)


def _inverse(history: csr_array[Any], regularization: float) -> npt.NDArray[np.float64]:
    """The lower triangle of (XᵀX + λI)⁻¹, in column order; what lies above it has no meaning."""
    num_items = history.shape[1]
    # Column-ordered, so that LAPACK works in place.
    gram = np.empty((num_items, num_items), dtype=np.float64, order="F")
    transposed = history.T.tocsr()
    columns = history.tocsc()
    for start in range(0, num_items, _BLOCK):
        stop = min(start + _BLOCK, num_items)
        gram[:, start:stop] = (transposed @ columns[:, start:stop]).toarray()
    gram[np.diag_indices(num_items)] += regularization
    factor, failed = lapack.dpotrf(gram, lower=1, overwrite_a=1, clean=0)
    if not failed:
        inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise DataError(f"EASE cannot be solved: XᵀX + {regularization} I is not positive definite")
    return np.asarray(inverse, dtype=np.float64)


def _weights(inverse: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    num_items = len(inverse)
    scale = -1 / inverse.diagonal()
    weights = np.empty((num_items, num_items), dtype=np.float32)
    for start in range(0, num_items, _BLOCK):
        stop = min(start + _BLOCK, num_items)
        lower = inverse[start:stop, :stop].copy()
        square = lower[:, start:]
        square[...] = np.tril(square) + np.tril(square, -1).T
        weights[start:stop, :stop] = lower * scale[:stop]
        weights[:stop, start:stop] = lower.T * scale[start:stop]
    np.fill_diagonal(weights, 0)
    return weights
