"""`evaluate`: ranking metrics of one scorer on held-out events; `evaluate_all`: of several, on the same split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import DataError, ResourceError
from sp_ray_ml.inference.baselines import Baseline
from sp_ray_ml.metrics.rank import rank
from sp_ray_ml.metrics.ranking import RankingMetrics

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from sp_ray_ml.metrics.rank import Scorer

__all__ = ["OnUsers", "evaluate", "evaluate_all"]

OnUsers = Callable[
    [
        npt.NDArray[np.int64],
        npt.NDArray[np.float64],
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        "csr_array[Any]",
    ],
    None,
]


def evaluate(
    scorer: Scorer,
    truth: csr_array[Any],
    seen: csr_array[Any],
    k: Sequence[int],
    *,
    unknown: npt.NDArray[np.integer[Any]] | None = None,
    strangers: npt.NDArray[np.integer[Any]] | None = None,
    warm_items: npt.NDArray[np.bool_] | None = None,
    warm_users: npt.NDArray[np.bool_] | None = None,
    average_precision: bool = False,
    progress: Callable[[int], None] | None = None,
    on_users: OnUsers | None = None,
) -> dict[str, float]:
    """Rank all items that are not in a user's training history, and compare with the test items.

    A test item that is in the history can never be recommended, and does not count as a test item.

    Args:
        scorer: Has `num_items` and `score(users) -> [users, items]`.
        truth: `[users, items]`, the stored entries are test events.
        seen: `[users, items]`, the whole training history.
        k: Lengths of the list of recommendations.
        unknown: `[users]`, how many more test items a user has that have no index at all.
        strangers: The number of test items of each user without an index: nothing can be recommended to them, and
            they count as cold users with a recall of 0.
        warm_items: bool `[items]`, the items with a training event; by default those in `seen`.
        warm_users: bool `[users]`, the users with a training event; by default those in `seen`.
        average_precision: Whether `map@k` is measured too.
        progress: Called with the number of users done since its last call.
        on_users: Called with what was measured of some users: their indices, their values `[names, users]` in the
            order of `RankingMetrics.names`, how many test items they have, their lists `[users, max(k)]`, and the test
            items `[users, items]`. Strangers are left out.

    Returns:
        What `RankingMetrics.finish` returns: `recall@20`, `ndcg@20/cold_items`, `users`, …

    Raises:
        ConfigError: A k is larger than the catalogue.
        DataError: No user has a test item, a score is NaN, or the shapes do not fit each other.
    """
    for name, matrix in (("truth", truth), ("seen", seen)):
        if matrix.shape != (truth.shape[0], scorer.num_items):
            raise DataError(
                f"{name} has shape {matrix.shape}, expected {(truth.shape[0], scorer.num_items)}: users × items"
            )
    if warm_items is None:
        warm_items = np.bincount(seen.indices, minlength=scorer.num_items) > 0
    if warm_users is None:
        warm_users = np.diff(seen.indptr) > 0
    metrics = RankingMetrics(k, scorer.num_items, warm_items, average_precision=average_precision)
    truth = _without(truth, seen)
    asked = np.diff(truth.indptr) > 0
    if unknown is not None:
        asked |= unknown > 0
    for users, items, _ in rank(scorer, np.flatnonzero(asked), max(k), seen):
        wanted = truth[users]
        values, sizes = metrics.update(
            items, wanted, warm_users[users], None if unknown is None else unknown[users]
        )
        if on_users:
            on_users(users, values.reshape(-1, len(users)), sizes, items, wanted)
        if progress:
            progress(len(users))
    if strangers is not None and len(strangers):
        from scipy.sparse import csr_array

        nothing = np.full((len(strangers), max(k)), -1, dtype=np.int32)
        empty = np.zeros(0, np.int32)
        shape = (len(strangers), scorer.num_items)
        none = csr_array((np.zeros(0, np.int8), empty, np.zeros(shape[0] + 1, np.int32)), shape=shape)
        metrics.update(nothing, none, np.zeros(len(strangers), dtype=bool), strangers)
    return metrics.finish()


def evaluate_all(
    scorers: Mapping[str, Scorer | Baseline],
    truth: csr_array[Any],
    seen: csr_array[Any],
    k: Sequence[int],
    *,
    unknown: npt.NDArray[np.integer[Any]] | None = None,
    strangers: npt.NDArray[np.integer[Any]] | None = None,
    average_precision: bool = False,
    progress: Callable[[int], None] | None = None,
    on_users: OnUsers | None = None,
) -> dict[str, dict[str, float | str]]:
    """Evaluate several on the same split, one after the other.

    Args:
        scorers: A fitted scorer each, or the settings of a baseline, which is then fitted to `seen` and dropped
            again before the next.
        truth: As in `evaluate`, like the other arguments.
        seen: The whole training history, which baselines are fitted to.
        k: Lengths of the list of recommendations.
        unknown: Test items without an index.
        strangers: Test items of users without an index.
        average_precision: Whether `map@k` is measured too.
        progress: Called with the number of users done since its last call.
        on_users: As in `evaluate`, of the first of the scorers.

    Returns:
        A row for each name: its metrics, or `{"skipped": reason}` for a baseline that cannot run at this size.

    Raises:
        ConfigError: As `evaluate`.
        DataError: As `evaluate`.
    """
    table: dict[str, dict[str, float | str]] = {}
    for name, given in scorers.items():
        try:
            scorer = given.fit(seen) if isinstance(given, Baseline) else given
        except ResourceError as error:
            table[name] = {"skipped": error.message}
            continue
        table[name] = {
            **evaluate(
                scorer,
                truth,
                seen,
                k,
                unknown=unknown,
                strangers=strangers,
                average_precision=average_precision,
                progress=progress,
                on_users=None if table else on_users,
            )
        }
    return table


def _without(truth: csr_array[Any], seen: csr_array[Any]) -> csr_array[Any]:
    """The entries of `truth` that `seen` does not store, as ones."""
    ones, theirs = (_pattern(matrix) for matrix in (truth, seen))
    left: csr_array[Any] = (ones - ones.multiply(theirs)).tocsr()
    left.eliminate_zeros()
    return left


def _pattern(matrix: csr_array[Any]) -> csr_array[Any]:
    from scipy.sparse import csr_array

    pattern = csr_array(
        (np.ones(matrix.nnz, np.int8), matrix.indices, matrix.indptr), matrix.shape, copy=True
    )
    pattern.sum_duplicates()
    pattern.data[:] = 1
    return pattern
