"""Ranking metrics as an accumulator: recall, NDCG, precision, hit rate, MRR, MAP and coverage at several k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.metrics._exact import exact_mean, exact_sum
from sp_ray_ml.metrics.topk import check_k

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["RankingMetrics"]

_METRICS = ("recall", "ndcg", "precision", "hit_rate", "mrr")
_MAP = "map"
_ITEM_GROUPS = ("warm_items", "cold_items")
_USER_GROUPS = ("warm_users", "cold_users")

_Bools = npt.NDArray[np.bool_]
_Ints = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.float64]


class RankingMetrics:
    """Means over users of how well ranked lists match what the users then chose.

    For a user with the set T of test items and the list r_1, r_2, … of recommended items, and gains
    g_i = 1 if r_i is in T, else 0:

        recall@k    = (g_1 + … + g_k) / |T|
        precision@k = (g_1 + … + g_k) / k
        hit_rate@k  = max(g_1, …, g_k)
        mrr@k       = 1 / (least i ≤ k with g_i = 1), or 0 without one
        ndcg@k      = sum(g_i / log2(i + 1), i = 1 … k) / sum(1 / log2(i + 1), i = 1 … min(k, |T|))
        map@k       = sum(g_i · precision@i, i = 1 … k) / min(k, |T|), where asked for

    (NDCG with binary gains: Järvelin and Kekäläinen 2002, "Cumulated gain-based evaluation of IR techniques".) Each
    is averaged over the users with a non-empty T; `users` is their number. T holds every test item, also those
    that nobody could recommend. `coverage@k` is the share of the catalogue that is in the first k of any of these
    users.

    The same, with a suffix, for groups: `/warm_users` and `/cold_users` over part of the users (coverage: what
    these are shown); `/warm_items` and `/cold_items` with T cut down to such items, lists as they are, over the
    users whose T then is not empty (coverage: the share of such items). A group that nobody is in has
    `users/<group>` 0 and no means.

    Users' values are added exactly: cuts into batches, their order and that of merges do not change a bit of the
    result.

    Args:
        k: Lengths of the list, each at least 1.
        num_items: Size of the catalogue.
        warm_items: bool `[num_items]`, the items with a training event; without it there are no item groups.
        average_precision: Whether `map@k` is measured too.

    Raises:
        ConfigError: A k is below 1 or larger than the catalogue.
    """

    def __init__(
        self,
        k: Sequence[int],
        num_items: int,
        warm_items: npt.NDArray[np.bool_] | None = None,
        *,
        average_precision: bool = False,
    ) -> None:
        self._metrics = (*_METRICS, _MAP) if average_precision else _METRICS
        self.k = tuple(sorted(set(k)))
        self.num_items = num_items
        if not self.k or self.k[0] < 1:
            raise ConfigError(f"k must be one or more numbers of at least 1, got {list(k)}")
        check_k(self.k[-1], num_items)
        if warm_items is not None and warm_items.shape != (num_items,):
            raise DataError(f"warm_items has shape {warm_items.shape}, expected ({num_items},)")
        self._warm_items = None if warm_items is None else warm_items.astype(np.bool_)
        self._user_groups = False
        groups = ("", *(_ITEM_GROUPS if warm_items is not None else ()), *_USER_GROUPS)
        self._users = dict.fromkeys(groups, 0)
        # Exact sums: Python's integers.
        self._sums = {group: np.zeros((len(self._metrics), len(self.k)), dtype=object) for group in groups}
        # The best rank (from 0) that each item had in the list of any user of the group.
        self._best_rank = {group: np.full(num_items, self.k[-1], np.int32) for group in ("", *_USER_GROUPS)}

    def update(
        self,
        recommended: npt.NDArray[np.int32],
        truth: csr_array[Any],
        warm_users: npt.NDArray[np.bool_] | None = None,
        unknown: npt.NDArray[np.integer[Any]] | None = None,
    ) -> tuple[_Floats, _Ints]:
        """Add users. Those without a test item do not count.

        Args:
            recommended: `[rows, at least max(k)]`, distinct item indices, the best first; -1 where a list ends.
            truth: `[rows, num_items]`, the stored entries are the test items.
            warm_users: bool `[rows]`, the users with a training event; without it there are no user groups. Give it
                in every update or in none.
            unknown: `[rows]`, how many more test items a user has that are not in the catalogue. They count as cold.

        Returns:
            The values of each row, float64 `[metrics, k, rows]`, in the order of `names`; how many test items it has,
            int64 `[rows]`. Where there are none the values mean nothing.

        Raises:
            DataError: Shapes or indices do not fit each other.
        """
        truth = self._checked(recommended, truth, warm_users, unknown)
        rows, depth = len(recommended), self.k[-1]
        items = np.where(recommended[:, :depth] < 0, -1, recommended[:, :depth]).astype(np.int64)
        gains = _in_rows(items, truth)
        extra = np.zeros(rows, dtype=np.int64) if unknown is None else unknown.astype(np.int64)
        sizes = np.diff(truth.indptr).astype(np.int64) + extra
        asked = sizes > 0
        values = self._values(gains, sizes)
        self._add("", values, asked)
        self._show("", items, asked)
        if warm_users is not None:
            self._user_groups = True
            for group, members in zip(_USER_GROUPS, (warm_users, ~warm_users), strict=True):
                self._add(group, values, asked & members)
                self._show(group, items, asked & members)
        if self._warm_items is not None:
            warm = self._warm_items
            warm_before = np.concatenate(([0], np.cumsum(warm[truth.indices], dtype=np.int64)))
            warm_sizes = warm_before[truth.indptr[1:]] - warm_before[truth.indptr[:-1]]
            warm_gains = gains & warm[items]
            for group, group_gains, group_sizes in (
                ("warm_items", warm_gains, warm_sizes),
                ("cold_items", gains & ~warm_gains, sizes - warm_sizes),
            ):
                self._add(group, self._values(group_gains, group_sizes), group_sizes > 0)
        return values, sizes

    @property
    def names(self) -> list[str]:
        """What each row is measured by: `recall@10`, `recall@20`, `ndcg@10`, …"""
        return [f"{metric}@{k}" for metric in self._metrics for k in self.k]

    def merge(self, other: RankingMetrics) -> None:
        """Add all users of another accumulator.

        Raises:
            DataError: It was made with other k, for another catalogue, or for other metrics.
        """
        same_items = (
            np.array_equal(self._warm_items, other._warm_items)
            if self._warm_items is not None and other._warm_items is not None
            else self._warm_items is other._warm_items
        )
        if (self.k, self.num_items, self._metrics) != (
            other.k,
            other.num_items,
            other._metrics,
        ) or not same_items:
            raise DataError("metrics with different k or items cannot be merged")
        self._user_groups |= other._user_groups
        for group in self._users:
            self._users[group] += other._users[group]
            self._sums[group] = self._sums[group] + other._sums[group]
        for group, best in other._best_rank.items():
            # Not in place: what comes out of Ray's object store is read-only.
            self._best_rank[group] = np.minimum(self._best_rank[group], best)

    def finish(self) -> dict[str, float]:
        """The means: `recall@20`, `ndcg@20/cold_items`, …, `coverage@20` and `users`.

        Raises:
            DataError: No user has a test item.
        """
        if not self._users[""]:
            raise DataError(
                "there is nothing to evaluate: no user has a test item",
                hint="Make the test part of the split larger, or check that its users and items are in the tables",
            )
        result: dict[str, float] = {}
        for group, users in self._users.items():
            if group in _USER_GROUPS and not self._user_groups:
                continue
            suffix = f"/{group}" if group else ""
            if users:
                for metric, sums in zip(self._metrics, self._sums[group], strict=True):
                    for k, total in zip(self.k, sums, strict=True):
                        result[f"{metric}@{k}{suffix}"] = exact_mean(int(total), users)
                for k in self.k:
                    result[f"coverage@{k}{suffix}"] = self._coverage(group, k)
            result[f"users{suffix}"] = float(users)
        return result

    def _coverage(self, group: str, k: int) -> float:
        shown = self._best_rank["" if group in _ITEM_GROUPS else group] < k
        if group not in _ITEM_GROUPS or self._warm_items is None:
            return float(shown.mean())
        members = self._warm_items if group == "warm_items" else ~self._warm_items
        # Test items outside the catalogue alone can make the group of cold items.
        return float(shown[members].mean()) if members.any() else 0.0

    def _values(self, gains: _Bools, sizes: _Ints) -> _Floats:
        """`[metric, k, rows]`, each value a function of its row alone; rows without truth hold no meaning."""
        last = np.array(self.k) - 1
        discounts = 1 / np.log2(np.arange(self.k[-1]) + 2)
        hits = np.cumsum(gains, axis=1)[:, last].T
        # cumsum adds one after the other, so that a perfect list has exactly the ideal's sum.
        gained = np.cumsum(gains * discounts, axis=1)[:, last].T
        ideal = np.cumsum(discounts)[np.maximum(np.minimum(np.array(self.k)[:, None], sizes), 1) - 1]
        first = np.where(gains.any(axis=1), gains.argmax(axis=1), self.k[-1])
        hit = first <= last[:, None]
        values = [
            hits / np.maximum(sizes, 1),
            gained / ideal,
            hits / np.array(self.k)[:, None],
            hit.astype(np.float64),
            np.where(hit, 1 / (first + 1), 0.0),
        ]
        if _MAP in self._metrics:
            precisions = gains * np.cumsum(gains, axis=1) / np.arange(1, self.k[-1] + 1)
            best = np.maximum(np.minimum(np.array(self.k)[:, None], sizes), 1)
            values.append(np.cumsum(precisions, axis=1)[:, last].T / best)
        return np.stack(values)

    def _add(self, group: str, values: _Floats, members: _Bools) -> None:
        sums = [[exact_sum(row) for row in of_metric] for of_metric in values[:, :, members]]
        self._sums[group] = self._sums[group] + np.array(sums, dtype=object)
        self._users[group] += int(members.sum())

    def _show(self, group: str, items: _Ints, members: _Bools) -> None:
        shown = items[members]
        ranks = np.broadcast_to(np.arange(shown.shape[1], dtype=np.int32), shown.shape)
        valid = shown >= 0
        np.minimum.at(self._best_rank[group], shown[valid], ranks[valid])

    def _checked(
        self,
        recommended: npt.NDArray[np.int32],
        truth: csr_array[Any],
        warm_users: npt.NDArray[np.bool_] | None,
        unknown: npt.NDArray[np.integer[Any]] | None,
    ) -> csr_array[Any]:
        rows = len(recommended)
        if recommended.ndim != 2 or recommended.shape[1] < self.k[-1]:
            raise DataError(
                f"recommended has shape {recommended.shape}, expected [rows, at least {self.k[-1]}]"
            )
        if truth.shape != (rows, self.num_items):
            raise DataError(f"truth has shape {truth.shape}, expected {(rows, self.num_items)}")
        if rows and recommended.max() >= self.num_items:
            raise DataError(
                f"item index {recommended.max()} is outside the catalogue of {self.num_items} items"
            )
        for name, array in (("warm_users", warm_users), ("unknown", unknown)):
            if array is not None and array.shape != (rows,):
                raise DataError(f"{name} has shape {array.shape}, expected ({rows},)")
        if not truth.has_canonical_format:
            truth = truth.copy()
            truth.sum_duplicates()
        return truth


def _in_rows(items: _Ints, truth: csr_array[Any]) -> _Bools:
    """Whether each item is stored in its row of `truth`; -1 never is."""
    if not truth.nnz:
        return np.zeros(items.shape, dtype=np.bool_)
    width = truth.shape[1]
    lengths = np.diff(truth.indptr)
    keys = np.repeat(np.arange(truth.shape[0], dtype=np.int64) * width, lengths) + truth.indices
    wanted = np.arange(len(items), dtype=np.int64)[:, None] * width + items
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    found: _Bools = (keys[at] == wanted) & (items >= 0)
    return found
