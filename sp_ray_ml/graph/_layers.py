"""`LayeredGNN`: a network that goes layer by layer, so that others may run its layers over parts of a graph."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch

from sp_ray_ml.graph.graph import ALONE, EdgeType

__all__ = ["LayeredGNN", "edge_indices", "edge_types", "node_store", "node_types"]


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
            data: Edges, and attributes of nodes.

        Returns:
            The next vectors of the same nodes. A node has those of the whole graph if all its in-edges are in `data`.
        """

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors of the nodes in `data`, float32 [nodes, width] by node type."""
        x = self.encode(data)
        for k in range(self.num_layers):
            x = self.layer(k, x, data)
        return x


def node_types(data: Any) -> list[str]:
    """Those of `HeteroData`; the one `""` of `Data`."""
    return list(data.node_types) if hasattr(data, "node_types") else [ALONE]


def edge_types(data: Any) -> list[EdgeType]:
    """Those of `HeteroData`; the one `("", "", "")` of `Data`."""
    return list(data.edge_types) if hasattr(data, "edge_types") else [(ALONE, ALONE, ALONE)]


def node_store(data: Any, name: str) -> Any:
    """Where `data` keeps what belongs to the nodes of a type."""
    return data if name == ALONE else data[name]


def edge_indices(data: Any) -> dict[EdgeType, torch.Tensor]:
    """int64 [2, edges] by edge type."""
    if hasattr(data, "edge_types"):
        return {kind: data[kind].edge_index for kind in data.edge_types}
    return {(ALONE, ALONE, ALONE): data.edge_index}
