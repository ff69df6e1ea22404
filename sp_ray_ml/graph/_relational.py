"""Layers over nodes and edges of several types, of PyG's: GAT, RGCN and HGT."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn import functional as F

from sp_ray_ml.graph._layers import LayeredGNN, edge_indices, edge_types, node_types, wanted
from sp_ray_ml.graph._nodes import NodeEncoder, key_of
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.optional import require

if TYPE_CHECKING:
    from sp_ray_ml.graph.models import GAT, HGT, RGCN, LayeredSettings

__all__ = ["EncodedGNN", "GATModule", "HGTModule", "RGCNModule", "along", "by_type"]


class EncodedGNN(LayeredGNN):
    """x⁰ of a `NodeEncoder`; each layer drops some of its input, propagates, and all but the last have a ReLU.

    Attributes:
        widths: Of each layer's vectors.
    """

    relu = True

    def __init__(self, settings: LayeredSettings, data: Any, out: int | None) -> None:
        super().__init__()
        self.settings, self.num_layers = settings, settings.layers
        self.widths = [settings.dim] * (settings.layers - 1) + [out or settings.dim]
        self.encoder = NodeEncoder(data, settings.dim, settings.init, ids=settings.ids is not False)

    def encode(self, data: Any) -> dict[str, torch.Tensor]:
        """See `LayeredGNN`."""
        vectors: dict[str, torch.Tensor] = self.encoder(data)
        return vectors

    def layer(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `LayeredGNN`."""
        dropped = {
            name: F.dropout(vectors, self.settings.dropout, self.training) for name, vectors in x.items()
        }
        found = self.propagate(k, dropped, data)
        if self.relu and k + 1 < self.num_layers:
            found = {name: F.relu(vectors) for name, vectors in found.items()}
        # A type that no edge type leads to stays as it is.
        return {**x, **found}

    @abstractmethod
    def propagate(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """The next vectors of the types that edges lead to, of the nodes that are `wanted`, before the activation."""


class GATModule(EncodedGNN):
    """See `sp_ray_ml.graph.GAT`, which has the equation."""

    def __init__(self, settings: GAT, data: Any, out: int | None = None) -> None:
        super().__init__(settings, data, out)
        nn = require("torch_geometric.nn", "GAT")
        kinds = edge_types(data)
        layer = nn.GATConv if settings.attention == "gat" else nn.GATv2Conv
        self.convolutions = torch.nn.ModuleList()
        self.own = torch.nn.ModuleList()
        for k, width in enumerate(self.widths):
            last = k + 1 == self.num_layers
            a_head = width if last else width // settings.heads
            options: dict[str, Any] = {
                "heads": settings.heads,
                "concat": not last,
                "add_self_loops": False,
                "bias": False,
            }
            make = partial(layer, (settings.dim, settings.dim), a_head, **options)
            self.convolutions.append(by_type(kinds, make))
            self.own.append(_own(data, settings.dim, width))

    def propagate(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `EncodedGNN`."""
        found = along(self.convolutions[k], x, data)
        own, ends = cast("Any", self.own[k]), wanted(x, data)
        return {name: vectors + own[key_of(name)](ends[name]) for name, vectors in found.items()}


class RGCNModule(EncodedGNN):
    """See `sp_ray_ml.graph.RGCN`, which has the equation."""

    def __init__(self, settings: RGCN, data: Any, out: int | None = None) -> None:
        super().__init__(settings, data, out)
        self.mean = require("torch_geometric.nn", "RGCN").SimpleConv(aggr="mean")
        self.kinds = edge_types(data)
        count = len(self.kinds) if settings.bases is None else settings.bases
        self.matrices = torch.nn.ParameterList(_glorot(count, settings.dim, width) for width in self.widths)
        self.shares = torch.nn.ParameterList(
            () if settings.bases is None else (_glorot(len(self.kinds), count) for _ in self.widths)
        )
        self.own = torch.nn.ModuleList(_own(data, settings.dim, width) for width in self.widths)

    def propagate(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `EncodedGNN`."""
        matrices = self.matrices[k]
        if len(self.shares):
            matrices = torch.einsum("rb,bio->rio", self.shares[k], matrices)
        own, ends = cast("Any", self.own[k]), wanted(x, data)
        indices = edge_indices(data)
        found: dict[str, torch.Tensor] = {}
        for matrix, (source, relation, destination) in zip(matrices, self.kinds, strict=True):
            mean = self.mean((x[source], ends[destination]), indices[source, relation, destination])
            if destination not in found:
                found[destination] = own[key_of(destination)](ends[destination])
            found[destination] = found[destination] + mean @ matrix
        return found


class HGTModule(EncodedGNN):
    """See `sp_ray_ml.graph.HGT`, which has the equation."""

    relu = False

    def __init__(self, settings: HGT, data: Any, out: int | None = None) -> None:
        super().__init__(settings, data, out)
        layer = require("torch_geometric.nn", "HGT").HGTConv
        names = [key_of(name) for name in node_types(data)]
        kinds = [_renamed(kind) for kind in edge_types(data)]
        self.convolutions = torch.nn.ModuleList(
            layer(settings.dim, settings.dim, (names, kinds), settings.heads) for _ in self.widths
        )
        self.last = None if out is None else _own(data, settings.dim, out)

    def propagate(self, k: int, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
        """See `EncodedGNN`."""
        indices = {_renamed(kind): index for kind, index in edge_indices(data).items()}
        found = self.convolutions[k]({key_of(name): vectors for name, vectors in x.items()}, indices)
        result = {name: found[key_of(name)] for name in x if found.get(key_of(name)) is not None}
        if k + 1 < self.num_layers or self.last is None:
            return result
        # Also of types that no edge leads to: their vectors have been of the width `dim` so far.
        return {name: self.last[key_of(name)](result.get(name, vectors)) for name, vectors in x.items()}


def by_type(kinds: list[EdgeType], make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A layer for each edge type; what they give a node is added up."""
    with warnings.catch_warnings():
        # PyG warns of types that no edge leads to; here they keep their vectors.
        warnings.filterwarnings("ignore", "There exist node types", UserWarning)
        found: torch.nn.Module = require("torch_geometric.nn", "a GNN").HeteroConv(
            {kind: make() for kind in kinds}
        )
        return found


def along(layers: torch.nn.Module, x: dict[str, torch.Tensor], data: Any) -> dict[str, torch.Tensor]:
    """What the layers of `by_type` give the nodes whose vectors are wanted."""
    ends, indices = wanted(x, data), edge_indices(data)
    taken = [kind for kind in indices if len(ends[kind[2]])]
    found: dict[str, torch.Tensor] = layers(
        {kind: (x[kind[0]], ends[kind[2]]) for kind in taken}, {kind: indices[kind] for kind in taken}
    )
    return found


def _renamed(kind: tuple[str, str, str]) -> tuple[str, str, str]:
    source, relation, destination = kind
    return key_of(source), relation, key_of(destination)


def _own(data: Any, width: int, out: int) -> torch.nn.ModuleDict:
    """W' of each node type."""
    return torch.nn.ModuleDict({key_of(name): torch.nn.Linear(width, out) for name in node_types(data)})


def _glorot(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.nn.init.xavier_uniform_(torch.empty(shape)))
