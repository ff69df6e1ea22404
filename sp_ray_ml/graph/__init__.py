"""Graphs: from events to typed nodes and edges, and the arrays that models read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.graph._layers import LayeredGNN
    from sp_ray_ml.graph._nearest import nearest
    from sp_ray_ml.graph._nearest_index import NearestIndex
    from sp_ray_ml.graph._node_vectors import NodeVectors
    from sp_ray_ml.graph.construct import build_graph, canonical_order
    from sp_ray_ml.graph.graph import Edges, EdgeType, Graph
    from sp_ray_ml.graph.layerwise import embed_nodes
    from sp_ray_ml.graph.loader import NeighborLoader
    from sp_ray_ml.graph.models import GAT, GCN, GNN, HGT, RGCN, GraphSAGE, LightGCN
    from sp_ray_ml.graph.on_disk import construct_graph
    from sp_ray_ml.graph.planetoid import load_planetoid
    from sp_ray_ml.graph.sampling import NeighborSampler
    from sp_ray_ml.graph.settings import CoOccurrence, EdgeTable, GraphSettings, NodeTable
    from sp_ray_ml.graph.sharded import ShardedGraph

__all__ = [
    "GAT",
    "GCN",
    "GNN",
    "HGT",
    "RGCN",
    "CoOccurrence",
    "EdgeTable",
    "EdgeType",
    "Edges",
    "Graph",
    "GraphSAGE",
    "GraphSettings",
    "LayeredGNN",
    "LightGCN",
    "NearestIndex",
    "NeighborLoader",
    "NeighborSampler",
    "NodeTable",
    "NodeVectors",
    "ShardedGraph",
    "build_graph",
    "canonical_order",
    "construct_graph",
    "embed_nodes",
    "load_planetoid",
    "nearest",
]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "_layers": ["LayeredGNN"],
            "_nearest": ["nearest"],
            "_nearest_index": ["NearestIndex"],
            "_node_vectors": ["NodeVectors"],
            "construct": ["build_graph", "canonical_order"],
            "graph": ["EdgeType", "Edges", "Graph"],
            "layerwise": ["embed_nodes"],
            "loader": ["NeighborLoader"],
            "models": ["GAT", "GCN", "GNN", "HGT", "RGCN", "GraphSAGE", "LightGCN"],
            "planetoid": ["load_planetoid"],
            "sampling": ["NeighborSampler"],
            "on_disk": ["construct_graph"],
            "sharded": ["ShardedGraph"],
            "settings": ["CoOccurrence", "EdgeTable", "GraphSettings", "NodeTable"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
