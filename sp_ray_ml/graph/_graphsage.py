"""Heterogeneous GraphSAGE's layers, of PyG's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from sp_ray_ml.graph._layers import LayeredGNN, edge_indices, edge_types
from sp_ray_ml.graph._nodes import NodeEncoder
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from sp_ray_ml.graph.models import GraphSAGE

__all__ = ["GraphSAGEModule"]


class GraphSAGEModule(LayeredGNN):
    """See `sp_ray_ml.graph.GraphSAGE`, which has the equation."""

    def __init__(self, settings: GraphSAGE, data: Any) -> None:
        super().__init__()
        nn = require("torch_geometric.nn", "GraphSAGE")
        self.settings, self.num_layers = settings, settings.layers
        self.encoder = NodeEncoder(data, settings.dim, settings.init)
        size = (settings.dim, settings.dim)
        self.convolutions = torch.nn.ModuleList(
            nn.HeteroConv(
                {
                    kind: nn.SAGEConv(size, settings.dim, aggr=settings.aggregation)
                    for kind in edge_types(data)
                },
                aggr="sum",
            )
            for _ in range(settings.layers)
        )

    def encode(self, data: Any) -> dict[str, torch.Tensor]:
        """See `LayeredGNN`."""
        vectors: dict[str, torch.Tensor] = self.encoder(data)
        return vectors

    def layer(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `LayeredGNN`."""
        x = {name: F.dropout(vectors, self.settings.dropout, self.training) for name, vectors in x.items()}
        found = self.convolutions[k](x, edge_indices(data))
        last = k + 1 == self.num_layers
        # A type that no edge type leads to stays as it is.
        return {**x, **{name: vectors if last else F.relu(vectors) for name, vectors in found.items()}}
