"""`LayeredGNN`: a network that goes layer by layer, so that others may run its layers over parts of a graph."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any

import torch

from sp_ray_ml.graph.graph import ALONE, EdgeType

__all__ = [
    "LayeredGNN",
    "edge_indices",
    "edge_store",
    "edge_types",
    "keep_edges",
    "node_store",
    "node_types",
    "wanted",
]


class LayeredGNN(torch.nn.Module):
    """x⁰ = encode(data), xᵏ⁺¹ = layer(k, xᵏ, data).

    `data` is a whole graph, or a batch of it as `NeighborLoader` gives it, PyG's `Data` or `HeteroData`. The nodes of
    a `Data` are of the one type `""`, its edges of `("", "", "")`.

    Attributes:
        num_layers: How many layers.
    """

    num_layers: int

    @abstractmethod
    def encode(self, data: Any) -> dict[str, torch.Tensor]:
        """First vectors of the nodes in `data`, float32 [nodes, width] by node type.

        What is learned of a node is looked up by `n_id`, where `data` has it.
        """

    @abstractmethod
    def layer(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """One layer over the edges of `data`.

        Args:
            k: Its number, from 0.
            x: Vectors of the nodes in `data`, in their order there.
            data: Edges, and attributes of nodes. Where a store of nodes has `num_wanted`, nobody looks at the next
                vectors of more than so many nodes, the first ones: see `wanted`.

        Returns:
            The next vectors of the same nodes, or of the first of them that are wanted. A node has those of the whole
            graph if all its in-edges are in `data`.
        """

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors of the nodes in `data`, float32 [nodes, width] by node type; of a batch those of its seeds alone.

        Each layer works on what it needs: of a batch with two hops, the second has but the seeds and their neighbours.
        """
        x = self.encode(data)
        hops = _Hops.of(data)
        for k in range(self.num_layers):
            left = self.num_layers - k
            if hops is not None:
                x, data = hops.nodes(x, left), hops.edges(data, left)
            x = self.layer(k, x, data)
        return x if hops is None else hops.nodes(x, 0)


def node_types(data: Any) -> list[str]:
    """Those of `HeteroData`; the one `""` of `Data`."""
    return list(data.node_types) if hasattr(data, "node_types") else [ALONE]


def edge_types(data: Any) -> list[EdgeType]:
    """Those of `HeteroData`; the one `("", "", "")` of `Data`."""
    return list(data.edge_types) if hasattr(data, "edge_types") else [(ALONE, ALONE, ALONE)]


def node_store(data: Any, name: str) -> Any:
    """Where `data` keeps what belongs to the nodes of a type."""
    return data if name == ALONE else data[name]


def edge_store(data: Any, kind: EdgeType) -> Any:
    """Where `data` keeps what belongs to the edges of a type."""
    return data if kind == (ALONE, ALONE, ALONE) else data[kind]


def edge_indices(data: Any) -> dict[EdgeType, torch.Tensor]:
    """int64 [2, edges] by edge type."""
    return {kind: edge_store(data, kind).edge_index for kind in edge_types(data)}


def wanted(x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
    """Of vectors of the nodes in `data`, those of the nodes whose next vectors are wanted: edges lead to no others."""
    found = {}
    for name, vectors in x.items():
        store = node_store(data, name)
        found[name] = vectors[: store.num_wanted] if "num_wanted" in store else vectors
    return found


def keep_edges(data: Any, kind: EdgeType, kept: torch.Tensor) -> None:
    """Leave the other edges of a type out of `data`, which is changed.

    Args:
        data: A whole graph or a batch, its stores not shared with others.
        kind: Which edges.
        kept: bool [edges].
    """
    store = edge_store(data, kind)
    names = [name for name in store.keys() if store.is_edge_attr(name)]  # noqa: SIM118
    count = kept.numel()
    for name in names:
        value = store[name]
        if isinstance(value, torch.Tensor):
            store[name] = value[:, kept] if name == "edge_index" else value[kept]
    hops = _list(store, "num_sampled_edges")
    if hops and sum(hops) == count:
        store.num_sampled_edges = [int(part.sum()) for part in torch.split(kept.cpu(), hops)]


class _Hops:
    """How many nodes and edges of a batch are within each hop; nodes and edges come by hop."""

    def __init__(self, nodes: dict[str, list[int]], edges: dict[EdgeType, list[int]]) -> None:
        self._nodes, self._edges = nodes, edges

    @classmethod
    def of(cls, data: Any) -> _Hops | None:
        """Those of a batch whose edges are as they were walked; None of all else."""
        indices = edge_indices(data)
        nodes = {name: _list(node_store(data, name), "num_sampled_nodes") for name in node_types(data)}
        edges = {kind: _list(edge_store(data, kind), "num_sampled_edges") for kind in indices}
        if any(not counts for counts in nodes.values()):
            return None
        if any(not counts or sum(counts) != indices[kind].shape[1] for kind, counts in edges.items()):
            return None
        return cls(nodes, edges)

    def nodes(self, x: dict[str, torch.Tensor], hops: int) -> dict[str, torch.Tensor]:
        """The vectors of nodes that are so many hops from the seeds, at most."""
        return {name: vectors[: sum(self._nodes[name][: hops + 1])] for name, vectors in x.items()}

    def edges(self, data: Any, hops: int) -> Any:
        """The batch with the edges of so many hops, and their nodes."""
        result = copy.copy(data)
        for kind, index in edge_indices(data).items():
            edge_store(result, kind).edge_index = index[:, : sum(self._edges[kind][:hops])]
        for name, counts in self._nodes.items():
            store = node_store(result, name)
            store.num_wanted = sum(counts[:hops])
            if "n_id" in store:
                store.n_id = store.n_id[: sum(counts[: hops + 1])]
        return result


def _list(store: Any, name: str) -> list[int]:
    return list(store[name] or ()) if name in store else []
