"""GCN's layers, of PyG's, with the degrees of the whole graph also where a batch is given."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.graph._layers import LayeredGNN, edge_indices, edge_types, node_store, node_types
from sp_ray_ml.graph._nodes import NodeEncoder
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from sp_ray_ml.graph.models import GCN

__all__ = ["GCNModule"]


class GCNModule(LayeredGNN):
    """See `sp_ray_ml.graph.GCN`, which has the equation."""

    def __init__(self, settings: GCN, data: Any, out: int | None = None) -> None:
        super().__init__()
        if len(node_types(data)) != 1 or len(edge_types(data)) != 1:
            raise ConfigError(
                f"GCN is for nodes and edges of one type each, the graph has {len(node_types(data))} and "
                f"{len(edge_types(data))}",
                where="train.model",
                hint="Take rgcn, hgt, gat or graphsage",
            )
        convolution = require("torch_geometric.nn", "GCN").GCNConv
        self.settings, self.num_layers = settings, settings.layers
        [self.name], [self.kind] = node_types(data), edge_types(data)
        store = node_store(data, self.name)
        width = store.x.shape[1] if "x" in store else 0
        self.encoder = None
        if settings.ids or not width:
            self.encoder, width = (
                NodeEncoder(data, settings.dim, settings.init, ids=settings.ids is not False),
                settings.dim,
            )
        widths = [width] + [settings.dim] * (settings.layers - 1) + [out or settings.dim]
        self.convolutions = torch.nn.ModuleList(
            convolution(before, after, normalize=False) for before, after in itertools.pairwise(widths)
        )
        degree = store.in_degree if "in_degree" in store else _counts(data, self.kind, store.num_nodes)
        # Known from the graph, so in no checkpoint.
        self.register_buffer("degree", degree.float(), persistent=False)

    def encode(self, data: Any) -> dict[str, torch.Tensor]:
        """See `LayeredGNN`."""
        if self.encoder is None:
            return {self.name: node_store(data, self.name).x}
        vectors: dict[str, torch.Tensor] = self.encoder(data)
        return vectors

    def layer(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `LayeredGNN`."""
        vectors = F.dropout(x[self.name], self.settings.dropout, self.training)
        found = self.convolutions[k](vectors, *self._weighted(data, len(vectors)))
        return {self.name: F.relu(found) if k + 1 < self.num_layers else found}

    def _weighted(self, data: Any, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Edges and those of each node to itself, with their weights."""
        index, store = edge_indices(data)[self.kind], node_store(data, self.name)
        degree: Any = self.degree
        if "n_id" in store:
            degree = degree.index_select(0, store.n_id)
        scale = (degree + 1).rsqrt()
        often = degree / _counts(data, self.kind, count).clamp(min=1)
        source, destination = index
        weight = scale[source] * scale[destination] * often[destination]
        itself = torch.arange(count, device=index.device).expand(2, -1)
        return torch.cat([index, itself], dim=1), torch.cat([weight, scale.square()])


def _counts(data: Any, kind: tuple[str, str, str], count: int) -> torch.Tensor:
    """In-edges of each node, int64 [nodes]."""
    return torch.bincount(edge_indices(data)[kind][1], minlength=count)
