"""What a caller keeps of hot nodes, within a number of bytes: rows of edges and rows of features.

Which nodes: those that sampling comes by most often for their bytes. How often is told by a node's out-edges (Lin et al.
2020, "PaGraph: Scaling GNN training on large graphs via computation-aware caching", SoCC): the cache is filled once
and does not change, so that it costs nothing to keep and results do not depend on what was asked for before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._sample_rows import Rows

__all__ = ["HotNodes", "HotRows", "hottest"]


class HotNodes:
    """Node ids, found by a hash."""

    def __init__(self, nodes: NDArray[np.int64]) -> None:
        self.nodes = nodes
        size = 1 << max(2 * len(nodes), 1).bit_length()
        self._keys, self._slots = np.full(size, -1, np.int64), np.zeros(size, np.int32)
        kernel.hot_insert(nodes, self._keys, self._slots)

    def take_over(
        self, nodes: NDArray[np.int64], here: int, shard: NDArray[np.int32], row: NDArray[np.int64]
    ) -> None:
        """Give the nodes that are kept the shard `here`, and their place among the kept ones as row."""
        if len(self.nodes):
            kernel.hot_lookup(nodes, self._keys, self._slots, np.int32(here), shard, row)

    @property
    def nbytes(self) -> int:
        """Bytes of the ids and of the hash."""
        return self.nodes.nbytes + self._keys.nbytes + self._slots.nbytes


@dataclass(frozen=True)
class HotRows:
    """In-edges of hot nodes, of one type."""

    nodes: HotNodes
    rows: Rows

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        rows = self.rows
        arrays: list[NDArray[Any]] = [rows.indptr, rows.indices, rows.weight, rows.time]
        if rows.edge is not None:
            arrays.append(rows.edge)
        return self.nodes.nbytes + sum(array.nbytes for array in arrays)


OVERHEAD = 8 + 4 * 12 + 2 * 8
"""Bytes of a node beside its rows at the most: its id, its hash, where its row begins."""


def hottest(
    visits: list[NDArray[np.int64]], cost: list[NDArray[np.int64]], budget: int
) -> list[NDArray[np.int64]]:
    """The places of nodes to keep, by type: the most visits a byte until the budget is spent, in ascending order.

    Args:
        visits: [candidates] of each type.
        cost: [candidates] of each type, bytes beside `OVERHEAD`.
        budget: Bytes.
    """
    which = np.concatenate([np.full(len(part), i) for i, part in enumerate(visits)])
    place = np.concatenate([np.arange(len(part)) for part in visits])
    all_visits, all_cost = np.concatenate(visits), np.concatenate(cost) + OVERHEAD
    order = np.argsort(-(all_visits / all_cost), kind="stable")
    order = order[: int(np.searchsorted(np.cumsum(all_cost[order]), budget, side="right"))]
    order = order[all_visits[order] > 0]
    return [np.sort(place[order[which[order] == i]]) for i in range(len(visits))]
