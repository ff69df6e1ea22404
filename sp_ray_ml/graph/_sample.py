"""What was sampled, and PyG's form of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.graph._sample_rows import Taken
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.optional import require

__all__ = ["Sample", "to_pyg"]


@dataclass(frozen=True)
class Sample:
    """What was found for seeds, by node and edge type.

    Attributes:
        nodes: int64 [n] node ids: the seeds, then others in the order in which they were met.
        trees: int64 [n], the seed (its place among all seeds) that a node belongs to; empty unless disjoint.
        edges: Positions in the sampler's rows, and `edge_index` [2, edges] in numbers of `nodes`.
        num_nodes: Nodes that each hop added, seeds first.
        num_edges: Edges that each hop added; None for an induced subgraph, which has no hops.
    """

    nodes: Mapping[str, NDArray[np.int64]]
    trees: Mapping[str, NDArray[np.int64]]
    edges: Mapping[EdgeType, Taken]
    num_nodes: Mapping[str, list[int]]
    num_edges: Mapping[EdgeType, list[int]] | None


def to_pyg(sample: Sample, *, homogeneous: bool, disjoint: bool, tree_of: NDArray[np.int64] | None) -> Any:
    """PyG's `SamplerOutput` or `HeteroSamplerOutput`.

    Args:
        sample: Of one type of nodes and edges where `homogeneous`.
        homogeneous: Without types.
        disjoint: Whether seeds have trees.
        tree_of: Names of the seeds' trees; None for the seeds' places.
    """
    pyg = require("torch_geometric.sampler", "sampling of neighbors")
    node = {name: torch.from_numpy(nodes) for name, nodes in sample.nodes.items()}
    batch = None
    if disjoint:
        named = {name: trees if tree_of is None else tree_of[trees] for name, trees in sample.trees.items()}
        batch = {name: torch.from_numpy(trees) for name, trees in named.items()}
    row = {kind: torch.from_numpy(taken.edge_index[0]) for kind, taken in sample.edges.items()}
    col = {kind: torch.from_numpy(taken.edge_index[1]) for kind, taken in sample.edges.items()}
    edge = {kind: torch.from_numpy(taken.position) for kind, taken in sample.edges.items()}
    counts = {} if sample.num_edges is None else {"num_sampled_edges": sample.num_edges}
    values: dict[str, Any] = {
        "node": node, "row": row, "col": col, "edge": edge, "batch": batch,
        "num_sampled_nodes": sample.num_nodes, **counts,
    }  # fmt: skip
    kind = pyg.HeteroSamplerOutput
    if homogeneous:
        kind = pyg.SamplerOutput
        values = {name: value and next(iter(value.values())) for name, value in values.items()}
    return kind(**values)
