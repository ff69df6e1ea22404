"""Heterogeneous GraphSAGE's layers, of PyG's."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sp_ray_ml.graph._layers import edge_types
from sp_ray_ml.graph._relational import EncodedGNN, along, by_type
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from sp_ray_ml.graph.models import GraphSAGE

__all__ = ["GraphSAGEModule"]


class GraphSAGEModule(EncodedGNN):
    """See `sp_ray_ml.graph.GraphSAGE`, which has the equation."""

    def __init__(self, settings: GraphSAGE, data: Any, out: int | None = None) -> None:
        super().__init__(settings, data, out)
        layer = require("torch_geometric.nn", "GraphSAGE").SAGEConv
        size, kinds = (settings.dim, settings.dim), edge_types(data)
        self.convolutions = torch.nn.ModuleList(
            by_type(kinds, partial(layer, size, width, aggr=settings.aggregation)) for width in self.widths
        )

    def propagate(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `EncodedGNN`."""
        return along(self.convolutions[k], x, data)
