"""First vectors of nodes: a learned one by id, and a projection of features."""

from __future__ import annotations

from typing import Any

import torch

from sp_ray_ml.graph._layers import node_store, node_types

__all__ = ["NodeEncoder"]


class NodeEncoder(torch.nn.Module):
    """x⁰ = known · ids + features · W for each node type, of a whole graph or of the nodes `n_id` of a batch.

    A node without training edges is unknown (`data[type].known` is False): its id's vector was never learned and
    is left out, so that it is what its features say.
    """

    def __init__(self, data: Any, dim: int, init: float) -> None:
        super().__init__()
        self.ids = torch.nn.ParameterDict()
        self.features = torch.nn.ModuleDict()
        self.names = node_types(data)
        for name in self.names:
            store = node_store(data, name)
            self.ids[_key(name)] = torch.nn.Parameter(torch.randn(store.num_nodes, dim) * init)
            if "x" in store and store.x.shape[1]:
                projection = torch.nn.Linear(store.x.shape[1], dim, bias=False)
                torch.nn.init.normal_(projection.weight, std=init / store.x.shape[1] ** 0.5)
                self.features[_key(name)] = projection

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors by node type, float32 [nodes, dim]."""
        result = {}
        for name in self.names:
            store, key = node_store(data, name), _key(name)
            vectors = self.ids[key]
            if "n_id" in store:
                vectors = vectors.index_select(0, store.n_id)
            if "known" in store:
                vectors = vectors * store.known.unsqueeze(1)
            if key in self.features:
                vectors = vectors + self.features[key](store.x)
            result[name] = vectors
        return result


def _key(name: str) -> str:
    """A name that PyTorch takes for a part of a module."""
    return name.replace(".", "#") or "node"
