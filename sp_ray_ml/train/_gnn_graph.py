"""A graph of any kind as a training of a GNN sees it: what the network is made for, batches, or the whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml._places import here
from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph._batches import Batches
from sp_ray_ml.graph._layers import edge_store, node_store
from sp_ray_ml.graph._shard_take import RemoteRows
from sp_ray_ml.graph.graph import EdgeType, Graph
from sp_ray_ml.graph.sampling import NeighborSampler
from sp_ray_ml.graph.sharded import ShardedGraph
from sp_ray_ml.optional import require

__all__ = ["TrainingGraph", "ids_of"]


class TrainingGraph:
    """A `Graph`, its folder, PyG's `Data` or `HeteroData`, or a `ShardedGraph`.

    Args:
        graph: The graph.
        neighbors: How many each layer draws; None takes the whole graph at once.
        seed: Of the draws.
        device: Where data is wanted.

    Raises:
        ConfigError: A `ShardedGraph` is wanted as a whole.
    """

    def __init__(
        self, graph: Any, neighbors: tuple[int, ...] | None, seed: int, device: torch.device
    ) -> None:
        self.graph = Graph.load(here(Path(graph))) if isinstance(graph, str) else graph
        if neighbors is None and isinstance(self.graph, ShardedGraph):
            raise ConfigError(
                "a ShardedGraph is never in one place, so it cannot be propagated over as a whole",
                where="train.neighbors",
                hint="Say how many neighbors each layer draws: neighbors: [15, 10]",
            )
        self.neighbors, self.device = neighbors, device
        self.sampler = NeighborSampler(self.graph, neighbors or (0,), seed=seed)
        self._whole: Any = None
        self._batches: Batches | None = None

    @property
    def homogeneous(self) -> bool:
        """Whether nodes have no types."""
        return self.sampler.inputs.homogeneous

    @property
    def num_nodes(self) -> Mapping[str, int]:
        """Of each type."""
        return self.sampler.inputs.num_nodes

    @property
    def kinds(self) -> list[EdgeType]:
        """The edge types."""
        return list(self.sampler.inputs.rows)

    @property
    def batches(self) -> Batches:
        """What makes batches of seeds."""
        if self._batches is None:
            pinned = self.device.type == "cuda"
            self._batches = Batches(self.graph, self.sampler, pinned=pinned)
        return self._batches

    def whole(self) -> Any:
        """The graph as PyG's data, on the device."""
        if self._whole is None:
            data = self.graph.to_pyg() if isinstance(self.graph, Graph) else self.graph
            self._whole = data.to(self.device) if self.device.type != "cpu" else data
        return self._whole

    def pattern(self, *, degrees: bool) -> Any:
        """What a network is made for: the whole graph, or with `neighbors` one of its sizes, without its edges.

        Args:
            degrees: Whether nodes should have their `in_degree`, where there is one type of edges.
        """
        if self.neighbors is None:
            return self.whole()
        pyg = require("torch_geometric.data", "a GNN")
        data = pyg.Data() if self.homogeneous else pyg.HeteroData()
        for name, count in self.num_nodes.items():
            store = node_store(data, name)
            store.num_nodes = count
            if width := self._width(name):
                store.x = torch.zeros(1, 1).expand(count, width)
        for kind in self.kinds:
            edge_store(data, kind).edge_index = torch.empty(2, 0, dtype=torch.int64)
        if degrees and len(self.kinds) == 1:
            [kind] = self.kinds
            node_store(data, kind[2]).in_degree = torch.from_numpy(np.diff(self._rows(kind)))
        return data

    def _width(self, name: str) -> int:
        if isinstance(self.graph, Graph):
            return int(self.graph.features[name].shape[1]) if name in self.graph.features else 0
        if isinstance(self.graph, ShardedGraph):
            return int(self.graph.parts.attributes(name).get("x", {}).get("width") or 0)
        store = node_store(self.graph, name)
        return int(store.x.shape[1]) if "x" in store else 0

    def _rows(self, kind: EdgeType) -> NDArray[np.int64]:
        if isinstance(self.graph, ShardedGraph):
            return RemoteRows(self.graph.parts, None, None, 0).whole(kind).indptr
        return self.sampler.inputs.rows[kind].indptr

    def attribute(self, name: str, attribute: str) -> Any:
        """An attribute of all nodes of a type, a tensor; None where there is no such."""
        if isinstance(self.graph, Graph):
            return None
        if isinstance(self.graph, ShardedGraph):
            if attribute not in self.graph.parts.attributes(name):
                return None
            everyone = np.arange(self.num_nodes[name])
            return self.graph.features().nodes(name, everyone, [attribute])[attribute].clone()
        store = node_store(self.graph, name)
        return getattr(store, attribute, None)

    def edges(self, kind: EdgeType) -> NDArray[np.int64]:
        """int64 [2, edges], in the order of their destinations."""
        if isinstance(self.graph, ShardedGraph):
            rows = RemoteRows(self.graph.parts, None, None, 0).whole(kind)
        else:
            rows = self.sampler.inputs.rows[kind]
        count = len(rows.indptr) - 1
        return np.stack([rows.indices.astype(np.int64), np.repeat(np.arange(count), np.diff(rows.indptr))])

    def node_type(self, name: str | None) -> str:
        """The type of that name, or the only one.

        Raises:
            ConfigError: There is none of that name, or several to choose from.
        """
        types, where = list(self.num_nodes), "train.task.node_type"
        if name is None:
            if len(types) == 1:
                return types[0]
            raise ConfigError(
                "there are several node types", where=where, hint=f"Name one of {', '.join(types)}"
            )
        if name not in types:
            known = ", ".join(types) if not self.homogeneous else "none has a name"
            raise ConfigError(f"there is no node type {name!r}", where=where, hint=f"Types: {known}")
        return name

    def edge_type(self, kind: EdgeType | None) -> EdgeType:
        """That edge type, or the only one.

        Raises:
            ConfigError: There is none such, or several to choose from.
        """
        kinds, where = self.kinds, "train.task.edge_type"
        known = ", ".join("-".join(one) for one in kinds)
        if kind is None:
            own = kinds if not isinstance(self.graph, Graph) else list(self.graph.edges)
            if len(own) == 1:
                return own[0]
            raise ConfigError("there are several edge types", where=where, hint=f"Name one of {known}")
        if tuple(kind) not in kinds:
            raise ConfigError(f"there is no edge type {'-'.join(kind)}", where=where, hint=f"Types: {known}")
        return kind


def ids_of(given: Any, count: int, where: str) -> NDArray[np.int64]:
    """Ids or a mask of nodes as ids, ascending where they come of a mask.

    Raises:
        DataError: A mask of another length; what is no node; a node twice.
    """
    array = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
    if array.ndim != 1:
        raise DataError(f"ids or a mask have one dimension, these have {array.ndim}", where=where)
    if array.dtype == np.bool_:
        if len(array) != count:
            raise DataError(f"a mask of {len(array)} for {count} nodes", where=where)
        return np.flatnonzero(array)
    if not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"ids are whole numbers, these are {array.dtype}", where=where)
    ids = array.astype(np.int64)
    if len(ids) and (ids.min() < 0 or ids.max() >= count):
        raise DataError(f"node {ids[(ids < 0) | (ids >= count)][0]} is none; there are {count}", where=where)
    if len(np.unique(ids)) < len(ids):
        raise DataError("a node is there twice", where=where)
    return ids
