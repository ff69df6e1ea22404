"""Graphs: from events to typed nodes and edges, and the arrays that models read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.graph.construct import build_graph, canonical_order
    from sp_ray_ml.graph.graph import Edges, EdgeType, Graph
    from sp_ray_ml.graph.loader import NeighborLoader
    from sp_ray_ml.graph.models import GNN, GraphSAGE, LightGCN
    from sp_ray_ml.graph.on_disk import construct_graph
    from sp_ray_ml.graph.planetoid import load_planetoid
    from sp_ray_ml.graph.sampling import NeighborSampler
    from sp_ray_ml.graph.settings import CoOccurrence, EdgeTable, GraphSettings, NodeTable
    from sp_ray_ml.graph.sharded import ShardedGraph

__all__ = [
    "GNN",
    "CoOccurrence",
    "EdgeTable",
    "EdgeType",
    "Edges",
    "Graph",
    "GraphSAGE",
    "GraphSettings",
    "LightGCN",
    "NeighborLoader",
    "NeighborSampler",
    "NodeTable",
    "ShardedGraph",
    "build_graph",
    "canonical_order",
    "construct_graph",
    "load_planetoid",
]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "construct": ["build_graph", "canonical_order"],
            "graph": ["EdgeType", "Edges", "Graph"],
            "loader": ["NeighborLoader"],
            "models": ["GNN", "GraphSAGE", "LightGCN"],
            "planetoid": ["load_planetoid"],
            "sampling": ["NeighborSampler"],
            "on_disk": ["construct_graph"],
            "sharded": ["ShardedGraph"],
            "settings": ["CoOccurrence", "EdgeTable", "GraphSettings", "NodeTable"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
