"""Heterogeneous GraphSAGE's forward pass, of PyG's layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from sp_ray_ml.graph._nodes import NodeEncoder
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from sp_ray_ml.graph.models import GraphSAGE

__all__ = ["GraphSAGEModule"]


class GraphSAGEModule(torch.nn.Module):
    """See `sp_ray_ml.graph.GraphSAGE`, which has the equation."""

    def __init__(self, settings: GraphSAGE, data: Any) -> None:
        super().__init__()
        nn = require("torch_geometric.nn", "GraphSAGE")
        self.settings = settings
        self.encoder = NodeEncoder(data, settings.dim, settings.init)
        size = (settings.dim, settings.dim)
        self.convolutions = torch.nn.ModuleList(
            nn.HeteroConv(
                {
                    kind: nn.SAGEConv(size, settings.dim, aggr=settings.aggregation)
                    for kind in data.edge_types
                },
                aggr="sum",
            )
            for _ in range(settings.layers)
        )

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors of users and items, float32 [nodes, dim]."""
        vectors: dict[str, torch.Tensor] = self.encoder(data)
        for i, convolution in enumerate(self.convolutions):
            vectors = {
                name: F.dropout(x, self.settings.dropout, self.training) for name, x in vectors.items()
            }
            vectors = convolution(vectors, data.edge_index_dict)
            if i + 1 < len(self.convolutions):
                vectors = {name: F.relu(x) for name, x in vectors.items()}
        return vectors
