"""Settings of the graph neural networks. Imports no heavy library: `build` does."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from sp_ray_ml.config import Custom, Family, Settings

if TYPE_CHECKING:
    import torch

__all__ = ["GNN", "GNNField", "GraphSAGE", "LightGCN"]


class GNN(Settings):
    """A network from a graph to one vector a node.

    `build(data)` gives a `torch.nn.Module` whose `forward(data)` takes a PyG `HeteroData` and returns
    `{"user": float32 [users, dim], "item": float32 [items, dim]}`. A module of your own is named by its import path:
    `model: {kind: "my_project.models:MyModel", hidden: 64}` calls `MyModel(data, hidden=64)`.
    """

    @abstractmethod
    def build(self, data: Any) -> torch.nn.Module:
        """Make the network for a graph like `data`: its node types, edge types and feature widths."""


class LightGCN(GNN):
    """LightGCN (He et al. 2020, arXiv:2002.02126) over ids and features.

    With E⁰ = ids + features · W, the vectors are the mean of E⁰ … Eᴸ, where Eᵏ⁺¹ = D_u^(-1/2) A D_i^(-1/2) Eᵏ from
    items to users and its transpose from users to items; A has the edges' weights, D their row and column sums.
    Item-item edges, where the graph has them, are added to the items' sum with the same normalization.
    """

    dim: int = pydantic.Field(default=64, ge=1)
    """Length of the vectors."""
    layers: int = pydantic.Field(default=2, ge=0)
    """Steps of propagation."""
    skip_first: bool = False
    """Leave E⁰ out of the mean, so that a node is what its neighbors say and not its own id (as Yu et al. 2022,
    "Are graph augmentations necessary?", arXiv:2112.08679, do); it has no effect without `layers`."""
    init: float = pydantic.Field(default=0.1, gt=0)
    """Standard deviation of the first ids' vectors."""
    start: Literal["random", "spectral"] = "random"
    """What the ids' vectors are first: `random` numbers, or `spectral`, U Σ^(1/2) for users and V Σ^(1/2) for items, of
    the `dim` largest singular values of D_u^(-1/2) A D_i^(-1/2) ≈ U Σ Vᵀ. That is what many layers of propagation
    tend to (Peng et al. 2022, "SVD-GCN", arXiv:2208.12689), so that training begins there instead of coming to it.
    The vectors hold every edge of the graph: for `supervision: {kind: all}`."""
    dropout: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Share of the first vectors' entries set to zero while training."""

    def build(self, data: Any) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._lightgcn import LightGCNModule

        return LightGCNModule(self, data)


class GraphSAGE(GNN):
    """Heterogeneous GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216) over ids and features, of PyG's `SAGEConv`.

    With x⁰ = ids + features · W, each layer is xᵏ⁺¹_v = act(Σ_r W_r mean_{u ∈ N_r(v)} xᵏ_u + W'_r xᵏ_v) over the
    edge types r that lead to v; there is no activation after the last.
    """

    dim: int = pydantic.Field(default=64, ge=1)
    """Length of the vectors."""
    layers: int = pydantic.Field(default=2, ge=1)
    """Steps of propagation."""
    aggregation: Literal["mean", "sum", "max"] = "mean"
    """How a node's neighbors are joined."""
    init: float = pydantic.Field(default=0.1, gt=0)
    """Standard deviation of the first ids' vectors."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of each layer's input set to zero while training."""

    def build(self, data: Any) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._graphsage import GraphSAGEModule

        return GraphSAGEModule(self, data)


GNNField = Annotated[
    GNN | Custom,
    Family(
        "model",
        {"lightgcn": "sp_ray_ml.graph.models:LightGCN", "graphsage": "sp_ray_ml.graph.models:GraphSAGE"},
        callables=True,
        default="lightgcn",
    ),
]
