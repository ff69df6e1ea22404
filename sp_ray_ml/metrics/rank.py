"""`rank`: the best k items of each of many users, as a stream in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import DataError
from sp_ray_ml.metrics.topk import check_k, top_k

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Scorer", "canonical_batch", "rank"]

Ranked = tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]

_BLOCK_BYTES = 32 << 20  # of scores: what the processor's cache and malloc's reuse of memory still cover
_MOST_ROWS = 256  # more make a batch no faster, and a single user slower
_WINDOW = 64  # batches' worth of users that are laid out together


class Scorer(Protocol):
    """What can be ranked and evaluated: a recommender that scores every item for some users."""

    @property
    def num_items(self) -> int:
        """Size of the catalogue."""

    def score(self, users: npt.NDArray[np.integer[Any]], /) -> npt.NDArray[np.float32]:
        """Scores, float32 `[len(users), num_items]`, of users given by index; higher is better."""


def canonical_batch(num_items: int) -> int:
    """How many users are scored at once: a power of two up to 256, the block of their scores at most 32 MiB.

    It depends on the model alone, never on how many users are asked for. (One row of more than 8 million items
    is larger than that and is scored alone.)
    """
    rows = max(1, min(_MOST_ROWS, _BLOCK_BYTES // (4 * max(1, num_items))))
    return int(1 << (rows.bit_length() - 1))


def rank(
    scorer: Scorer,
    users: npt.NDArray[np.integer[Any]],
    k: int,
    seen: csr_array[Any] | None = None,
    *,
    batch: int | None = None,
) -> Iterator[Ranked]:
    """Rank the items for users, without those each has seen. Equal scores rank by the lower item index.

    A user's scores do not depend on who else is asked for, to the last bit. A matrix product's last bits depend
    on its shape and on the row's place in it (OpenBLAS has other kernels for the edges), not on the other rows:
    so each user has a place of its own, `user % batch`, in batches of one size, whose empty places are filled up.
    (They also depend on the machine and on how many threads its BLAS library has; those are the caller's.)

    Args:
        scorer: Has `num_items` and `score(users) -> [users, items]`.
        users: Indices `[n]`, in any order, also repeated.
        k: Items a user.
        seen: `[users, items]`, rows by user index; stored entries are left out. None leaves nothing out.
        batch: Users scored at once instead of `canonical_batch(num_items)`; another size changes last bits.

    Yields:
        Users (a slice of what was given), their items, int32 `[rows, k]`, and the scores, float32 `[rows, k]`; a
        list with fewer than k items left ends in -1 and minus infinity.

    Raises:
        ConfigError: k is below 1 or larger than the catalogue.
        DataError: A user is not in `seen`, the scores have another shape, or one is NaN.
    """
    check_k(k, scorer.num_items)
    if seen is not None and seen.shape[1] != scorer.num_items:
        raise DataError(f"seen has {seen.shape[1]} items, the model {scorer.num_items}")
    if seen is not None and len(users) and not 0 <= users.min() <= users.max() < seen.shape[0]:
        raise DataError(f"users {users.min()} to {users.max()} were asked for, and seen has {seen.shape[0]}")
    rows = batch or canonical_batch(scorer.num_items)
    if seen is not None and not seen.has_sorted_indices:
        seen = seen.sorted_indices()
    return _ranked(scorer, np.asarray(users, dtype=np.int64), k, seen, rows)


def _ranked(
    scorer: Scorer, users: npt.NDArray[np.int64], k: int, seen: csr_array[Any] | None, batch: int
) -> Iterator[Ranked]:
    for start in range(0, len(users), batch * _WINDOW):
        window = users[start : start + batch * _WINDOW]
        best = np.empty((len(window), k), dtype=np.int32)
        best_scores = np.empty((len(window), k), dtype=np.float32)
        for members in _layout(window % batch):
            # Empty places hold the batch's first user: a row of somebody who can be scored.
            padded = np.full(batch, window[members[0]])
            places = window[members] % batch
            padded[places] = window[members]
            scores = _checked(scorer.score(padded), (batch, scorer.num_items))
            if len(members) < batch:
                scores = scores[places]
            asked = window[members]
            best[members], best_scores[members] = _best(scores, k, asked, seen)
        yield window, best, best_scores


def _layout(places: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cut positions into batches, in the order of their places, with each place at most once in a batch."""
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    round_of = np.arange(len(places)) - np.searchsorted(ordered, ordered)
    for number in range(int(round_of.max(initial=-1)) + 1):
        yield order[round_of == number]


def _best(
    scores: npt.NDArray[np.float32], k: int, users: npt.NDArray[np.int64], seen: csr_array[Any] | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    try:
        return top_k(scores, k, None if seen is None else seen[users])
    except DataError as error:
        bad = np.isnan(scores)
        if not bad.any():
            raise
        row, item = (int(place[0]) for place in np.nonzero(bad))
        raise DataError(
            f"the model's score of user {users[row]} for item {item} (by index) is not a number (NaN)",
            hint="Train again with a lower learning rate, and check the features for NaN",
        ) from error


def _checked(scores: Any, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    array = np.asarray(scores)
    if array.shape != shape:
        raise DataError(f"the model's scores have shape {array.shape}, expected {shape}")
    return array
