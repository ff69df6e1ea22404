"""The features of a sharded graph: gathered by the shards, in one call each for a batch, put in their places here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._buffers import Buffers
from sp_ray_ml.graph._features import Features
from sp_ray_ml.graph._files import open_array
from sp_ray_ml.graph._hot import HotNodes, hottest
from sp_ray_ml.graph._partition import FROM_GRAPH
from sp_ray_ml.graph._relabel_kernel import word_of
from sp_ray_ml.graph._sample_rows import Taken
from sp_ray_ml.graph._shard_part import ReadEdges, ReadNodes, Request, aligned
from sp_ray_ml.graph._split import Parts, Split, narrow
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.optional import require

__all__ = ["ShardedFeatures"]


class ShardedFeatures(Features):
    """Attributes of nodes and edges in shards, those of hot nodes also here.

    Args:
        parts: The shards.
        cache: Bytes of features to keep here.
    """

    def __init__(self, parts: Parts, cache: int) -> None:
        pyg = require("torch_geometric.data", "batches of a graph")
        plain = pyg.Data() if parts.homogeneous else pyg.HeteroData()
        for entry in parts.manifest["nodes"]:
            store = plain if parts.homogeneous else plain[entry["type"]]
            if entry["counted"]:
                store.num_nodes = entry["count"]
        for kind in () if parts.homogeneous else parts.kinds:
            plain[kind]  # in the order of the graph, whichever of them have attributes
        super().__init__(plain, {name: {} for name in parts.num_nodes}, {})
        self.parts = parts
        self._from_graph = parts.manifest["graph"]
        self._hot: dict[str, HotNodes] = {}
        self._kept: dict[str, list[NDArray[Any]]] = {}
        self._keep(cache)

    def batch(
        self,
        node: Mapping[str, NDArray[np.int64]],
        edge_index: Mapping[Any, torch.Tensor],
        edge: Mapping[Any, NDArray[np.int64] | None],
        buffers: Buffers | None,
        walked: Mapping[Any, Taken] | None = None,
    ) -> Any:
        wanted: dict[str | EdgeType, tuple[Split, list[str]]] = {}
        requests: list[list[Request]] = [[] for _ in self.parts.links]
        for name, ids in node.items():
            if names := [one for one in self.parts.attributes(name) if one not in self._left_out]:
                wanted[name] = self.parts.split(name, ids, self._hot.get(name)), names
                self._ask(requests, name, *wanted[name])
        for kind, ids_or_none in edge.items():
            if ids_or_none is not None and (names := self._edge_names(kind)):
                number = edge_index[kind][1].numpy() if walked is None else _owners(walked[kind], ids_or_none)
                owners = node[kind[2]][number]
                wanted[kind] = self.parts.split(kind[2], owners), names
                self._ask(requests, kind, *wanted[kind], ids=ids_or_none)
        answers = self.parts.begin(requests)
        batch = copy.copy(self._plain)
        iterators = [iter(some) for some in answers()]
        for of, (split, names) in wanted.items():
            found = [next(it) if len(rows) else None for it, rows in zip(iterators, split.rows, strict=False)]
            store = self._store(batch, of)
            for attribute, value in self._put(of, split, names, found, buffers).items():
                store[self._called(of, attribute)] = value
        self._complete(batch, node, edge_index, edge)
        return batch

    def nodes(self, name: str, ids: NDArray[np.int64], names: list[str]) -> dict[str, torch.Tensor]:
        """Attributes of nodes, [ids, …] each."""
        split = self.parts.split(name, ids, self._hot.get(name))
        requests: list[list[Request]] = [[] for _ in self.parts.links]
        self._ask(requests, name, split, names)
        found = [some[0] if some else None for some in self.parts.all(requests)]
        return self._put(name, split, names, found, Buffers(0))

    def _edge_names(self, kind: EdgeType) -> list[str]:
        return [name for name in self.parts.attributes(kind) if not self._from_graph or name in FROM_GRAPH]

    def _called(self, of: str | EdgeType, attribute: str) -> str:
        return FROM_GRAPH.get(attribute, attribute) if self._from_graph and not isinstance(of, str) else attribute  # fmt: skip

    def _ask(
        self,
        requests: list[list[Request]],
        of: str | EdgeType,
        split: Split,
        names: list[str],
        ids: NDArray[np.int64] | None = None,
    ) -> None:
        known = list(self.parts.attributes(of))
        numbers = tuple(known.index(name) for name in names)
        for s, asked in enumerate(requests):
            if not len(split.rows[s]):
                continue
            if isinstance(of, str):
                rows = narrow(split.rows[s], self.parts.num_nodes[of])
                asked.append(ReadNodes(self.parts.types[of], numbers, rows))
            else:
                assert ids is not None
                rows = narrow(split.rows[s], self.parts.num_nodes[of[2]])
                number = self.parts.kinds[of]
                mine = narrow(ids[split.where[s]], self.parts.manifest["edges"][number]["count"])
                asked.append(ReadEdges(number, numbers, rows, mine))

    def _put(
        self, of: str | EdgeType, split: Split, names: list[str], found: list[Any], buffers: Buffers | None
    ) -> dict[str, torch.Tensor]:
        about = self.parts.attributes(of)
        count = sum(map(len, split.where))
        result = {}
        for i, name in enumerate(names):
            dtype, width = np.dtype(about[name]["dtype"]), about[name]["width"]
            shape = (count,) if width is None else (count, width)
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            # Pinned memory is kept for the next batch by PyTorch itself.
            out = buffers.empty(shape, kind) if buffers else torch.empty(shape, dtype=kind, pin_memory=True)
            for where, answer in zip(split.where, found, strict=False):
                if answer is not None:
                    _scatter(aligned(answer[i]), where, out)
            if isinstance(of, str) and len(split.where[-1]):
                kept = self._kept[of][list(about).index(name)]
                _scatter(kept[split.rows[-1]], split.where[-1], out)
            result[name] = out
        return result

    def _keep(self, budget: int) -> None:
        parts = self.parts
        types = [name for name in parts.num_nodes if parts.attributes(name)]
        if not budget or not types:
            return
        hot = [
            [np.asarray(open_array(parts.folder, f"hot-{parts.types[name]}-{what}")) for what in ("node", "visits")]
            for name in types
        ]  # fmt: skip
        cost = [
            sum(np.dtype(one["dtype"]).itemsize * (one["width"] or 1) for one in parts.attributes(name).values())
            for name in types
        ]  # fmt: skip
        chosen = hottest(
            [visits for _, visits in hot],
            [np.full(len(visits), a_node) for (_, visits), a_node in zip(hot, cost, strict=True)],
            budget,
        )
        for name, (nodes, _), places in zip(types, hot, chosen, strict=True):
            if len(places):
                ids = np.ascontiguousarray(nodes[places], np.int64)
                names = list(parts.attributes(name))
                values = self.nodes(name, ids, names)
                self._hot[name] = HotNodes(ids)
                self._kept[name] = [values[one].numpy() for one in names]

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept here."""
        return sum(hot.nbytes for hot in self._hot.values()) + sum(
            array.nbytes for arrays in self._kept.values() for array in arrays
        )


def _owners(walked: Taken, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of nodes in whose rows edges are, by the edges' ids: their destinations, as they were walked."""
    order = np.argsort(walked.position)
    # In several trees, an edge leads to one node under several numbers; any of them will do.
    place = order[np.searchsorted(walked.position, ids, sorter=order)]
    number: NDArray[np.int64] = walked.edge_index[1][place]
    return number


def _scatter(rows: NDArray[Any], where: NDArray[np.int64], out: torch.Tensor) -> None:
    if not rows.size:
        return
    width = rows.nbytes // len(rows)
    word = word_of(width)
    into = out.reshape(len(out), -1).view(torch.uint8).numpy().view(word)
    kernel.scatter_rows(rows.reshape(len(rows), -1).view(np.uint8).view(word), where, into)
