"""First vectors of nodes: a learned one by id, and a projection of features."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["NodeEncoder"]


class NodeEncoder(torch.nn.Module):
    """x⁰ = known · ids + features · W for each node type.

    A node without training edges is unknown (`data[type].known` is False): its id's vector was never learned and
    is left out, so that it is what its features say.
    """

    def __init__(self, data: Any, dim: int, init: float) -> None:
        super().__init__()
        self.ids = torch.nn.ParameterDict()
        self.features = torch.nn.ModuleDict()
        for name in data.node_types:
            self.ids[name] = torch.nn.Parameter(torch.randn(data[name].num_nodes, dim) * init)
            if "x" in data[name] and data[name].x.shape[1]:
                projection = torch.nn.Linear(data[name].x.shape[1], dim, bias=False)
                torch.nn.init.normal_(projection.weight, std=init / data[name].x.shape[1] ** 0.5)
                self.features[name] = projection

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        """Vectors by node type, float32 [nodes, dim]."""
        result = {}
        for name, ids in self.ids.items():
            vectors = ids * data[name].known.unsqueeze(1) if "known" in data[name] else ids
            if name in self.features:
                vectors = vectors + self.features[name](data[name].x)
            result[name] = vectors
        return result
