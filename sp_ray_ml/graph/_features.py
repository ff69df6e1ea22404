"""The features of a graph's nodes and edges as tables of words, whose rows compiled code gathers without Python's lock."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.graph import _relabel_kernel as kernel
from sp_ray_ml.graph._buffers import Buffers
from sp_ray_ml.graph._sample_inputs import ALONE
from sp_ray_ml.graph._sample_rows import Taken
from sp_ray_ml.graph._tensors import read_only
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.optional import require

__all__ = ["Features", "read_features"]


class _Column:
    """One attribute: its rows as words of 1, 4 or 8 bytes, or as it is where it cannot be read so."""

    def __init__(self, value: Any, axis: int) -> None:
        self.value, self.axis = value, axis
        self.words: NDArray[Any] | None = None
        if isinstance(value, torch.Tensor) and value.device.type == "cpu" and value.dim() and axis == 0 and value.numel():  # fmt: skip
            flat = value.detach().contiguous().reshape(len(value), -1).view(torch.uint8)
            width = flat.shape[1]
            word = kernel.word_of(width)
            if flat.data_ptr() % 8 == 0:
                self.words = flat.numpy().view(word)

    def gather(self, index: NDArray[np.int64], buffers: Buffers | None) -> Any:
        if self.words is None:
            select = require("torch_geometric.loader.utils", "batches of a graph").index_select
            return select(self.value, torch.from_numpy(index), dim=self.axis)
        shape = (len(index), *self.value.shape[1:])
        # Pinned memory is kept for the next batch by PyTorch itself.
        out = buffers.empty(shape, self.value.dtype) if buffers else torch.empty(shape, dtype=self.value.dtype, pin_memory=True)  # fmt: skip
        if len(index):
            flat = out.reshape(len(index), -1).view(torch.uint8).numpy().view(self.words.dtype)
            kernel.copy_rows(self.words, index, flat)
        return out


class Features:
    """All attributes of nodes and edges, and what else belongs to the data."""

    def __init__(
        self,
        plain: Any,
        nodes: Mapping[str, Mapping[str, _Column]],
        edges: Mapping[Any, Mapping[str, _Column]],
    ) -> None:
        self._plain, self._nodes, self._edges = plain, nodes, edges
        self._alone = ALONE in nodes
        self._left_out: frozenset[str] = frozenset()

    def without(self, *attributes: str) -> Self:
        """The same without some attributes of nodes."""
        result = copy.copy(self)
        result._left_out = self._left_out | set(attributes)
        return result

    def batch(
        self,
        node: Mapping[str, NDArray[np.int64]],
        edge_index: Mapping[Any, torch.Tensor],
        edge: Mapping[Any, NDArray[np.int64] | None],
        buffers: Buffers | None,
        walked: Mapping[Any, Taken] | None = None,  # noqa: ARG002
    ) -> Any:
        """A batch of nodes and edges, `edge` being ids; None where edges have lost theirs.

        Attributes are gathered into `buffers`, or without them into pinned memory. `walked` are the edges as they were
        found, with their ids, where `edge_index` has them in both directions: shards find edges by their destinations.
        """
        batch = copy.copy(self._plain)
        for name, index in node.items():
            store = self._store(batch, name)
            for attribute, column in self._nodes[name].items():
                if attribute not in self._left_out:
                    store[attribute] = column.gather(index, buffers)
                elif attribute in store:
                    del store[attribute]
        for kind, ids in edge.items():
            store = self._store(batch, kind)
            for attribute, column in self._edges[kind].items():
                store[attribute] = None if ids is None else column.gather(ids, buffers)
        self._complete(batch, node, edge_index, edge)
        return batch

    def _store(self, batch: Any, of: Any) -> Any:
        """Where a batch keeps what belongs to a type."""
        return batch._store if self._alone else batch[of]

    def _complete(
        self,
        batch: Any,
        node: Mapping[str, NDArray[np.int64]],
        edge_index: Mapping[Any, torch.Tensor],
        edge: Mapping[Any, NDArray[np.int64] | None],
    ) -> None:
        """Give a batch its edges, and the ids of its nodes and edges."""
        for name, index in node.items():
            store = self._store(batch, name)
            if "num_nodes" in store:
                store.num_nodes = len(index)
            store.n_id = torch.from_numpy(index)
        for kind, ids in edge.items():
            store = self._store(batch, kind)
            store.edge_index = edge_index[kind]
            if ids is not None:
                store.e_id = torch.from_numpy(ids)


def read_features(data: Any, kinds: Iterable[Any]) -> Features:
    """Those of a `Graph` (`x`, and `edge_weight` where edges have weights) or of PyG's `Data` or `HeteroData`.

    Args:
        data: The graph.
        kinds: The edge types that are sampled.
    """
    if isinstance(data, Graph):
        return _of_graph(data, kinds)
    alone = not hasattr(data, "edge_types")
    node_stores = {ALONE: data._store} if alone else {name: data[name] for name in data.node_types}
    edge_stores = {kind: data._store if alone else data[kind] for kind in kinds}

    def column(name: str, store: Any) -> _Column:
        return _Column(store[name], int(data.__cat_dim__(name, store[name], store)))

    nodes = {
        kind: {name: column(name, store) for name in store if store.is_node_attr(name)}
        for kind, store in node_stores.items()
    }
    edges = {
        kind: {
            name: column(name, store) for name in store if name != "edge_index" and store.is_edge_attr(name)
        }
        for kind, store in edge_stores.items()
    }
    return Features(data, nodes, edges)


def _of_graph(graph: Graph, kinds: Iterable[Any]) -> Features:
    plain = require("torch_geometric.data", "batches of a graph").HeteroData()
    for name, count in graph.num_nodes.items():
        plain[name].num_nodes = count
    nodes = {
        name: {"x": _Column(read_only(graph.features[name]), 0)} if name in graph.features else {}
        for name in graph.num_nodes
    }
    edges: dict[Any, dict[str, _Column]] = {}
    for kind in kinds:
        # The reverse of an edge type has its edges, in their order.
        forward = kind if kind in graph.edges else (kind[2], kind[1].removeprefix("rev_"), kind[0])
        weight = graph.edges[forward].weight
        edges[kind] = {} if weight is None else {"edge_weight": _Column(read_only(weight), 0)}
    return Features(plain, nodes, edges)
