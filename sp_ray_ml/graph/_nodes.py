"""First vectors of nodes: a learned one by id, and a projection of features."""

from __future__ import annotations

from typing import Any

import torch

from sp_ray_ml.graph._layers import node_store, node_types

__all__ = ["NodeEncoder", "key_of"]


class NodeEncoder(torch.nn.Module):
    """x⁰ = known · ids + features · W for each node type, of a whole graph or of the nodes `n_id` of a batch.

    A node without training edges is unknown (`data[type].known` is False): its id's vector was never learned and
    is left out, so that it is what its features say.

    Args:
        data: The graph: `num_nodes` and the width of `x` of each node type count.
        dim: Length of the vectors.
        init: Standard deviation of the ids' vectors.
        ids: Whether nodes with features have an id's vector, too.
    """

    def __init__(self, data: Any, dim: int, init: float, *, ids: bool = True) -> None:
        super().__init__()
        self.ids = torch.nn.ParameterDict()
        self.features = torch.nn.ModuleDict()
        self.names = node_types(data)
        for name in self.names:
            store, key = node_store(data, name), key_of(name)
            width = store.x.shape[1] if "x" in store else 0
            if ids or not width:
                self.ids[key] = torch.nn.Parameter(torch.randn(store.num_nodes, dim) * init)
            if width:
                projection = torch.nn.Linear(width, dim, bias=False)
                torch.nn.init.normal_(projection.weight, std=init / width**0.5)
                self.features[key] = projection

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors by node type, float32 [nodes, dim]."""
        result = {}
        for name in self.names:
            store, key = node_store(data, name), key_of(name)
            parts = []
            if key in self.ids:
                vectors = self.ids[key]
                if "n_id" in store:
                    vectors = vectors.index_select(0, store.n_id)
                parts.append(vectors * store.known.unsqueeze(1) if "known" in store else vectors)
            if key in self.features:
                parts.append(self.features[key](store.x))
            result[name] = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return result


def key_of(name: str) -> str:
    """A type's name as PyTorch takes it for a part of a module."""
    return name.replace(".", "#") or "node"
