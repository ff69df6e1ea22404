"""One step of layer-wise inference for a range of nodes: their in-edges, their sources' vectors, the module's layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph._batches import Batches
from sp_ray_ml.graph._files import open_array
from sp_ray_ml.graph._layer_files import LayerFiles, Widths
from sp_ray_ml.graph._layers import LayeredGNN, node_store
from sp_ray_ml.graph._partition import part_folder
from sp_ray_ml.graph._placement import Placement
from sp_ray_ml.graph._tensors import read_only
from sp_ray_ml.graph.graph import Graph
from sp_ray_ml.graph.sampling import NeighborSampler
from sp_ray_ml.graph.sharded import ShardedGraph

__all__ = ["LayerWork", "Range"]

Range = tuple[str, int, int]
"""Node type, first node, and one after the last."""


class LayerWork:
    """A graph and a module, and what a step makes of a range of nodes.

    A `LayeredGNN` has a step for `encode` and one for each layer; any other module has one, of whole neighbourhoods.

    Args:
        graph: Folder of a `Graph`, or a graph as `NeighborLoader` takes it.
        module: In the mode and on the device that it computes in.
        hops: Layers of a module that is no `LayeredGNN`.
    """

    def __init__(self, graph: Any, module: torch.nn.Module, hops: int) -> None:
        graph = Graph.load(graph) if isinstance(graph, str) else graph
        self._graph, self._module = graph, module
        self._begins: dict[str, list[NDArray[np.int64]]] = {}
        self.layered = isinstance(module, LayeredGNN)
        self.steps = module.num_layers + 1 if isinstance(module, LayeredGNN) else 1
        self._sampler = NeighborSampler(graph, [-1] * (1 if self.layered else hops))
        # The same rows without a copy of them, of which nothing is taken; what a layer needs of `x` is in the vectors.
        self._nobody = copy.copy(self._sampler)
        self._nobody.num_neighbors = {kind: [0] for kind in self._sampler.inputs.rows}
        self._whole = Batches(graph, self._sampler)
        self._layers = self._whole.without("x")
        self._device = next(iter(module.parameters()), torch.empty(0)).device

    @property
    def num_nodes(self) -> Mapping[str, int]:
        """Of each type."""
        return self._sampler.inputs.num_nodes

    def in_edges(self, name: str) -> list[NDArray[np.int64]]:
        """int64 [nodes + 1] of each edge type that leads to a node type: where each node's edges begin."""
        kinds = [kind for kind in self._sampler.inputs.rows if kind[2] == name]
        if not isinstance(self._graph, ShardedGraph):
            return [self._sampler.inputs.rows[kind].indptr for kind in kinds]
        if name not in self._begins:  # put together of all shards once, not for every step
            parts = self._graph.parts
            shard, row = parts.placement.find(name, np.arange(self.num_nodes[name]))
            self._begins[name] = [
                _in_edges(parts.folder, parts.placement, parts.kinds[kind], shard, row) for kind in kinds
            ]
        return self._begins[name]

    def probe(self) -> tuple[list[Widths], list[tuple[int, int]]]:
        """The width of each type's vectors after each step, and the bytes that a node and an edge have in a batch.

        Found with one node of each type, and zeros for the vectors of others.
        """
        steps: list[dict[str, int]] = []
        sizes = []
        for step in range(self.steps):
            widths: dict[str, int] = {}
            a_node = an_edge = 0
            for name, count in self.num_nodes.items():
                if not count:
                    continue
                node = self._lightest(name)
                batch = self._batch(step, (name, node, node + 1))
                x = (
                    {of: torch.zeros(len(_ids(batch, of)), width) for of, width in steps[-1].items()}
                    if step
                    else {}
                )
                found = self._call(step, x, batch)
                # Of types without nodes, too, which others' edges may come from.
                widths |= {
                    of: int(v.shape[1]) for of, v in found.items() if of == name or not self.num_nodes[of]
                }
                a_node = max([a_node, *(_row_bytes(node_store(batch, of)) for of in self.num_nodes)])
                stores = [batch] if self._sampler.inputs.homogeneous else batch.edge_stores
                an_edge = max([an_edge, *(_row_bytes(store, edges=True) for store in stores)])
            if not widths:
                raise ConfigError(
                    "it gives no vectors of any type of nodes", where=type(self._module).__name__
                )
            steps.append(widths)
            sizes.append((a_node, an_edge))
        return list(steps), sizes

    def run(
        self, step: int, part: Range, files: LayerFiles, before: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Compute a range's vectors, of those `before`, and write them into their places."""
        name, first, last = part
        with torch.inference_mode():
            batch = self._batch(step, part)
            x = {of: torch.index_select(read_only(array), 0, _ids(batch, of)) for of, array in before.items()}
            vectors = self._call(step, x, batch)[name][: last - first].detach().to("cpu", torch.float32)
        if not bool(torch.isfinite(vectors).all()):
            node = first + int((~torch.isfinite(vectors)).any(dim=1).nonzero()[0, 0])
            raise DataError(
                f"the vector of node {node} is NaN or infinite after {self._what(step)}", where=f"nodes {name}".strip(),
                hint="Check the features for NaN, and whether training has diverged",
            )  # fmt: skip
        files.write(step, name, first, vectors.numpy())

    def _batch(self, step: int, part: Range) -> Any:
        name, first, last = part
        sampler = self._nobody if self.layered and step == 0 else self._sampler
        batches = self._layers if self.layered and step else self._whole
        batch = batches.batch(sampler.sample({name: np.arange(first, last)}))
        node_store(batch, name).batch_size = last - first
        for of in self.num_nodes:
            node_store(batch, of).num_wanted = last - first if of == name else 0
        return batch.to(self._device)

    def _call(self, step: int, x: dict[str, torch.Tensor], batch: Any) -> dict[str, torch.Tensor]:
        module: Any = self._module
        if not self.layered:
            found = module(batch)
            if not isinstance(found, torch.Tensor):
                return dict(found)
            if len(self.num_nodes) > 1:
                raise ConfigError(
                    f"it gives one tensor, and there are {len(self.num_nodes)} types of nodes", where=type(module).__name__,
                    hint="Give a dict from node type to tensor",
                )  # fmt: skip
            return {next(iter(self.num_nodes)): found}
        if step == 0:
            return dict(module.encode(batch))
        return dict(module.layer(step - 1, {name: rows.to(self._device) for name, rows in x.items()}, batch))

    def _what(self, step: int) -> str:
        if not self.layered:
            return "the module"
        return f"layer {step - 1}" if step else "encode"

    def _lightest(self, name: str) -> int:
        """A node with few in-edges, among the first."""
        counts = [np.diff(begin[:1_025]) for begin in self.in_edges(name)]
        return int(np.sum(counts, axis=0).argmin()) if counts else 0


def _ids(batch: Any, name: str) -> torch.Tensor:
    ids: torch.Tensor = node_store(batch, name).n_id
    return ids.cpu()


def _row_bytes(store: Any, *, edges: bool = False) -> int:
    """Bytes of one node's, or one edge's, attributes."""
    mapping = getattr(store, "_store", store)
    total = 0
    for name, value in mapping.items():
        if isinstance(value, torch.Tensor) and (
            mapping.is_edge_attr(name) if edges else mapping.is_node_attr(name)
        ):
            shape = value.shape[:1] if name == "edge_index" else value.shape[1:]
            total += value.element_size() * math.prod(shape)
    return total


def _in_edges(
    folder: Path, placement: Placement, number: int, shard: NDArray[np.int32], row: NDArray[np.int64]
) -> NDArray[np.int64]:
    begin = np.zeros(len(row) + 1, np.int64)
    for s in range(placement.shards):
        mine = np.flatnonzero(shard == s)
        begin[1:][mine] = np.diff(open_array(part_folder(folder, s), f"edges-{number}-indptr"))[row[mine]]
    return np.cumsum(begin)
