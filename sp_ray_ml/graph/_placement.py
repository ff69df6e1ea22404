"""Which shard has which node: by a hash that needs no table, or by a streaming edge-cut heuristic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._sample_inputs import SampleInputs

__all__ = ["Placement", "edge_cut"]

_SLACK = 1.05
_PASSES = 4
_MOST_ROWS = 4096


@dataclass(frozen=True)
class Placement:
    """The shard and the row there of every node. Rows are in the order of the nodes.

    Attributes:
        shards: How many.
        shard: int32 [nodes] by node type; empty where a hash tells.
        row: int32 or int64 [nodes] by node type.
    """

    shards: int
    shard: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    row: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def find(self, name: str, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The shard, int32 [n], and the row, int64 [n], of nodes of one type."""
        if self.shard:
            return self.shard[name][nodes], self.row[name][nodes].astype(np.int64)
        shard, row = np.empty(len(nodes), np.int32), np.empty(len(nodes), np.int64)
        kernel.hash_places(nodes, self.shards, shard, row)
        return shard, row

    @classmethod
    def by_table(cls, shards: int, shard: Mapping[str, NDArray[np.int32]]) -> Placement:
        """A placement by a table: each shard's rows are its nodes in their order."""
        row = {}
        for name, owner in shard.items():
            row[name] = np.empty(len(owner), np.int32 if len(owner) < 2**31 else np.int64)
            for s in range(shards):
                mine = np.flatnonzero(owner == s)
                row[name][mine] = np.arange(len(mine))
        return cls(shards, shard, row)


def edge_cut(inputs: SampleInputs, shards: int, *, passes: int = _PASSES) -> dict[str, NDArray[np.int32]]:
    """A shard for every node, so that few edges lead from one shard to another, from passes over the edges' files.

    Linear deterministic greedy streaming (Stanton & Kliot 2012, "Streaming graph partitioning for large distributed
    graphs", KDD): node v goes to

        argmax_s |P_s ∩ N(v)| · (1 - L_s / C),   C = 1.05 · (∑_s L_s) / S

    with N(v) its neighbours of all edge types, and the emptiest of equal ones. L_s is the load of a shard: a node costs 1
    and each of its in-edges, which the shard stores and samples of, another 1. Further passes go by the assignment of the
    one before until a node is met again (restreaming, Nishimura & Ugander 2013, KDD), which bipartite graphs need: in
    the first pass, no neighbour of the first type's nodes has a place yet. Nodes are assigned by blocks of up to 4,096,
    within which neighbours count by the pass before. Memory: 4 bytes a node.

    Args:
        inputs: In-edges of all types.
        shards: How many, S.
        passes: How many.

    Returns:
        int32 [nodes] by node type.
    """
    shard = {name: np.full(count, -1, np.int32) for name, count in inputs.num_nodes.items()}
    total = sum(inputs.num_nodes.values()) + sum(len(rows.indices) for rows in inputs.rows.values())
    # A node's out-edges are the in-edges of the reverse type, where there is one; in-edges alone tell enough otherwise.
    for _ in range(passes):
        load = np.zeros(shards)
        for name, count in inputs.num_nodes.items():
            size = min(max(count // 64, 1), _MOST_ROWS)
            for first in range(0, count, size):
                rows = min(size, count - first)
                counts, cost = np.zeros((rows, shards), np.int64), np.ones(rows, np.int64)
                for kind, edges in inputs.rows.items():
                    if kind[2] == name:
                        kernel.count_shards(edges.indptr, edges.indices, shard[kind[0]], first, counts)
                        cost += np.diff(edges.indptr[first : first + rows + 1])
                kernel.assign(counts, cost, _SLACK * total / shards, load, shard[name][first : first + rows])
    return shard
