"""Settings of the graph neural networks. Imports no heavy library: `build` does."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from sp_ray_ml.config import Custom, Family, Settings, located
from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    import torch

__all__ = ["GAT", "GCN", "GNN", "HGT", "RGCN", "GNNField", "GraphSAGE", "LayeredSettings", "LightGCN"]


class GNN(Settings):
    """A network from a graph to one vector a node.

    `build(data)` gives a `torch.nn.Module` whose `forward(data)` takes a PyG `HeteroData` and returns
    `{"user": float32 [users, dim], "item": float32 [items, dim]}`. A module of your own is named by its import path:
    `model: {kind: "my_project.models:MyModel", hidden: 64}` calls `MyModel(data, hidden=64)`. With `neighbors`, or
    for another task than recommending, `forward` is given batches, too, `HeteroData` or `Data`, and returns vectors
    (for classes, logits) of the nodes in them: a tensor, or a dict by node type.
    """

    @abstractmethod
    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network for a graph like `data`: its node types, edge types and feature widths.

        Args:
            data: PyG's `HeteroData` or `Data`.
            out: Width of the last vectors: classes. Without, that of the settings.
        """


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

    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._lightgcn import LightGCNModule

        if out is not None:
            raise ConfigError(
                "LightGCN recommends, it has no classes", where="train.model", hint="Take graphsage"
            )
        return LightGCNModule(self, data)


class LayeredSettings(GNN):
    """What networks of layers have in common: x⁰ = ids + features · W, and layer by layer xᵏ⁺¹ from xᵏ.

    A node type that no edge type leads to keeps its vectors.
    """

    dim: int = pydantic.Field(default=64, ge=1)
    """Length of the vectors."""
    layers: int = pydantic.Field(default=2, ge=1)
    """Steps of propagation."""
    ids: bool | None = None
    """Whether each node has a learned vector of its own beside its features; nodes without features always have. By
    default in recommending only: nodes that training has not seen are then what their features say."""
    init: float = pydantic.Field(default=0.1, gt=0)
    """Standard deviation of the first ids' vectors."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of each layer's input set to zero while training."""


class GraphSAGE(LayeredSettings):
    """Heterogeneous GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216) over ids and features, of PyG's `SAGEConv`.

    With x⁰ = ids + features · W, each layer is xᵏ⁺¹_v = act(Σ_r W_r mean_{u ∈ N_r(v)} xᵏ_u + W'_r xᵏ_v) over the
    edge types r that lead to v; there is no activation after the last.
    """

    aggregation: Literal["mean", "sum", "max"] = "mean"
    """How a node's neighbors are joined."""

    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._graphsage import GraphSAGEModule

        return GraphSAGEModule(self, data, out)


class GCN(LayeredSettings):
    """GCN (Kipf and Welling 2017, arXiv:1609.02907) for nodes and edges of one type each, of PyG's `GCNConv`.

    xᵏ⁺¹ = act(D^(-1/2) (A + I) D^(-1/2) xᵏ W_k), x⁰ being the features, D the degrees of the whole graph, each one more
    for the edge to itself; there is no activation after the last layer. Where a batch has s of a node's d edges, these
    count d / s times, so that their sum has the mean that it has in the whole graph.
    """

    dim: int = pydantic.Field(default=16, ge=1)
    """Length of the vectors."""
    dropout: float = pydantic.Field(default=0.5, ge=0, lt=1)
    """Share of each layer's input set to zero while training."""

    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._gcn import GCNModule

        return GCNModule(self, data, out)


class _Heads(LayeredSettings):
    heads: int = pydantic.Field(default=4, ge=1)
    """Attentions side by side, each over `dim` / `heads` entries."""

    @pydantic.model_validator(mode="after")
    def _heads_divide(self) -> _Heads:
        if self.dim % self.heads:
            raise located([(("heads",), f"must divide dim, and {self.heads} does not divide {self.dim}")])
        return self


class GAT(_Heads):
    """Heterogeneous graph attention, of PyG's `GATConv` or `GATv2Conv`.

    xᵏ⁺¹_v = act(W' xᵏ_v + Σ_r ‖_h Σ_{u ∈ N_r(v)} α_{rh}(v, u) W_rh xᵏ_u) over the edge types r that lead to v, α being
    the softmax over u of LeakyReLU(aᵀ [W xᵏ_v ‖ W xᵏ_u]) (Veličković et al. 2018, arXiv:1710.10903), or for `gatv2` of
    aᵀ LeakyReLU(W [xᵏ_v ‖ xᵏ_u]) (Brody et al. 2022, arXiv:2105.14491). After the last layer there is no activation,
    and its heads are averaged.
    """

    attention: Literal["gat", "gatv2"] = "gatv2"
    """Which of the two."""

    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._relational import GATModule

        return GATModule(self, data, out)


class RGCN(LayeredSettings):
    """RGCN (Schlichtkrull et al. 2018, arXiv:1703.06103), of PyG's `SimpleConv`.

    xᵏ⁺¹_v = act(W'_t xᵏ_v + Σ_r W_r mean_{u ∈ N_r(v)} xᵏ_u) over the edge types r that lead to v, of type t; with
    `bases`, W_r = Σ_b a_rb V_b. There is no activation after the last layer.
    """

    bases: int | None = pydantic.Field(default=None, ge=1)
    """Matrices V that all edge types share; without, each has its own."""

    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._relational import RGCNModule

        return RGCNModule(self, data, out)


class HGT(_Heads):
    """Heterogeneous graph transformer (Hu et al. 2020, arXiv:2003.01332), of PyG's `HGTConv`.

    xᵏ⁺¹_v = β_t A_t gelu(‖_h Σ_{r, u} softmax(q_vᵀ W_r k_u μ_r / √d) M_r m_u) + (1 - β_t) xᵏ_v, where queries, keys and
    messages come of a node type's own matrices, W and M of the edge type's, and the softmax is over all edges that
    lead to v. Vectors of another width than `dim` come of one more matrix a node type.
    """

    def build(self, data: Any, out: int | None = None) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.graph._relational import HGTModule

        return HGTModule(self, data, out)


GNNField = Annotated[
    GNN | Custom,
    Family(
        "model",
        {
            "lightgcn": "sp_ray_ml.graph.models:LightGCN",
            "graphsage": "sp_ray_ml.graph.models:GraphSAGE",
            "gcn": "sp_ray_ml.graph.models:GCN",
            "gat": "sp_ray_ml.graph.models:GAT",
            "rgcn": "sp_ray_ml.graph.models:RGCN",
            "hgt": "sp_ray_ml.graph.models:HGT",
        },
        callables=True,
        default="lightgcn",
    ),
]
