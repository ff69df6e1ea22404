"""One part of a sharded graph, memory-mapped: what a shard's actor answers of it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml._places import Home, adopt, here
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph import _relabel_kernel as relabel
from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._files import open_array, read_manifest
from sp_ray_ml.graph._negatives import linked
from sp_ray_ml.graph._partition import open_node_times, part_folder
from sp_ray_ml.graph._sample_inputs import ready_rows
from sp_ray_ml.graph._sample_rows import EMPTY, Rows, draw_rows, edge_ids
from sp_ray_ml.graph.graph import Edges

__all__ = [
    "FindEdges",
    "Part",
    "ReadEdges",
    "ReadNodes",
    "ReadRows",
    "Request",
    "TakeRows",
    "aligned",
    "keep_memory",
]


class TakeRows(NamedTuple):
    """Sample in-edges of rows for several batches: `draw_rows`.

    `time` is an attribute of the edges, or of the nodes that they come from.

    Answered by edges of each row, sources, and edge ids. Where the ids of a row follow one another, as in a graph that is
    kept by destination, these travel as the row's first id and places in the row; that array is empty otherwise.
    """

    kind: int
    weight: str | None
    time: str | None
    fanout: int
    replace: bool
    newest: bool
    keys: NDArray[np.uint64]
    ends: NDArray[np.int64]
    rows: NDArray[Any]
    trees: NDArray[Any]
    until: NDArray[np.int64]
    limits: NDArray[np.int64]


class ReadRows(NamedTuple):
    """Whole rows, for a cache. Answered by edges of each row, sources, weights, times and edge ids."""

    kind: int
    weight: str | None
    time: str | None
    rows: NDArray[Any]


class FindEdges(NamedTuple):
    """Which pairs of a source and a row are edges that sampling could take. Answered by one array of booleans."""

    kind: int
    weight: str | None
    time: str | None
    rows: NDArray[Any]
    sources: NDArray[Any]


class ReadNodes(NamedTuple):
    """Attributes of nodes, by number. Answered by one array each."""

    type: int
    attributes: tuple[int, ...]
    rows: NDArray[Any]


class ReadEdges(NamedTuple):
    """Attributes of edges, by the rows and the ids of the edges. Answered by one array each."""

    kind: int
    attributes: tuple[int, ...]
    rows: NDArray[Any]
    ids: NDArray[Any]


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of malloc.h."""

Request = TakeRows | ReadRows | FindEdges | ReadNodes | ReadEdges


class Part:
    """What one shard has of a graph. It only reads, so that it may be opened again and asked again at any time."""

    def __init__(self, folder: str, shard: int) -> None:
        self._whole = Path(folder)
        self._folder = part_folder(self._whole, shard)
        self._manifest = manifest = read_manifest(self._folder)
        self._kinds = [tuple(entry["type"]) for entry in manifest["edges"]]
        self._consecutive = [bool(entry.get("consecutive")) for entry in manifest["edges"]]
        self._edge_names = [list(entry["attributes"]) for entry in manifest["edges"]]
        self._nodes = [self._open(f"nodes-{i}") for i in range(len(manifest["nodes"]))]
        self._edges = [
            {name: self._open(f"edges-{i}-{name}") for name in ("indptr", "indices", "edge", "first")}
            for i in range(len(self._kinds))
        ]
        self._node_attributes = [
            [self._open(f"node-{i}-{j}") for j in range(len(entry["attributes"]))]
            for i, entry in enumerate(manifest["nodes"])
        ]
        self._edge_attributes = [
            [self._open(f"edge-{i}-{j}") for j in range(len(names))]
            for i, names in enumerate(self._edge_names)
        ]
        self._types = {entry["type"]: i for i, entry in enumerate(manifest["nodes"])}
        self._rows: dict[tuple[int, str | None, str | None], Rows] = {}

    def _open(self, name: str) -> NDArray[Any]:
        return np.asarray(open_array(self._folder, name))

    def answer(self, requests: list[Request]) -> list[tuple[NDArray[Any], ...]]:
        """Answer requests, of one batch or of several."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> tuple[NDArray[Any], ...]:
        rows = np.ascontiguousarray(request.rows, np.int64)
        if isinstance(request, TakeRows):
            return self._take(request, rows)
        if isinstance(request, ReadRows):
            return self._read_rows(request, rows)
        if isinstance(request, FindEdges):
            edges = self._ready(request.kind, request.weight, request.time)
            return (linked(edges, np.ascontiguousarray(request.sources, np.int64), rows),)
        if isinstance(request, ReadNodes):
            arrays = self._node_attributes[request.type]
            return tuple(_gathered(arrays[i], rows) for i in request.attributes)
        stored = self._edges[request.kind]
        position = np.empty(len(rows), np.int64)
        wanted = np.ascontiguousarray(request.ids, np.int64)
        if kernel.place_edges(stored["indptr"], stored["edge"], rows, wanted, position):
            raise DataError("an edge was asked for that is not in the row of its destination")
        arrays = self._edge_attributes[request.kind]
        return tuple(_gathered(arrays[i], position) for i in request.attributes)

    def _take(self, request: TakeRows, rows: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        edges = self._ready(request.kind, request.weight, request.time)
        drawn = draw_rows(
            edges,
            _picked(self._nodes_of(request.kind), rows).astype(np.int64),
            rows,
            fanout=request.fanout,
            keys=aligned(request.keys),
            ends=aligned(request.ends),
            trees=np.ascontiguousarray(request.trees, np.int64),
            until=aligned(request.until),
            limits=aligned(request.limits),
            replace=request.replace,
            newest=request.newest,
        )
        counts = drawn.counts.astype(np.min_scalar_type(int(drawn.counts.max(initial=0))))
        if self._consecutive[request.kind] and edges.edge is None:
            return counts, drawn.source, _picked(self._edges[request.kind]["first"], rows), drawn.offset
        return counts, drawn.source, EMPTY, self._ids(request.kind, edges, drawn.position)

    def _read_rows(self, request: ReadRows, rows: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        edges = self._ready(request.kind, request.weight, request.time)
        first = edges.indptr[rows]
        counts = edges.indptr[rows + 1] - first
        ends = np.cumsum(counts)
        position = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + counts, counts)
        return (
            counts,
            edges.indices[position],
            edges.weight[position] if len(edges.weight) else edges.weight,
            edges.time[position] if len(edges.time) else edges.time,
            self._ids(request.kind, edges, position),
        )

    def _ids(self, kind: int, edges: Rows, position: NDArray[np.int64]) -> NDArray[Any]:
        # `edges.edge` is the place before edges were left out or brought into the order of time; none, if they were not.
        return _picked(self._edges[kind]["edge"], edge_ids(edges, position))

    def _nodes_of(self, kind: int) -> NDArray[Any]:
        """The nodes in whose rows edges of a type are."""
        return self._nodes[self._types[self._kinds[kind][2]]]

    def _ready(self, kind: int, weight: str | None, time: str | None) -> Rows:
        if (kind, weight, time) not in self._rows:
            arrays = dict(zip(self._edge_names[kind], self._edge_attributes[kind], strict=True))
            edges = Edges(
                self._edges[kind]["indptr"],
                self._edges[kind]["indices"],
                None if weight is None else arrays[weight].reshape(-1),
                None if time is None else self._times(kind, time),
            )
            self._rows[kind, weight, time] = ready_rows(
                edges,
                self._kinds[kind],
                weighted=weight is not None,
                timed=time is not None,
                nodes=self._nodes_of(kind),
            )
        return self._rows[kind, weight, time]

    def _times(self, kind: int, attribute: str) -> NDArray[Any]:
        """Times of edges; or those of the nodes that they come from, in memory then."""
        names = self._edge_names[kind]
        if attribute in names:
            times: NDArray[Any] = self._edge_attributes[kind][names.index(attribute)].reshape(-1)
        else:
            of_nodes = open_node_times(self._whole, self._manifest, attribute)[self._kinds[kind][0]]
            times = of_nodes[self._edges[kind]["indices"]]
        return times


class ShardActor:
    """A part in an actor; with each answer comes where it is, since a restarted one may be elsewhere."""

    def __init__(self, folder: str, shard: int, homes: Sequence[Home] = ()) -> None:
        import ray

        keep_memory()
        adopt(homes)
        context = ray.get_runtime_context()
        self._place = (ray.util.get_node_ip_address(), context.get_node_id(), os.getpid())
        self._part = Part(str(here(Path(folder))), shard)

    def answer(self, requests: list[Request]) -> tuple[tuple[str, str, int], list[tuple[NDArray[Any], ...]]]:
        """As `Part.answer`."""
        return self._place, self._part.answer(requests)


def keep_memory() -> None:
    """Have the allocator keep what is freed: calls need the same memory again, and fresh pages cost as much as a sample."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):  # glibc's
        library.mallopt(_TRIM_THRESHOLD, 512 << 20)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """An array that compiled code takes, which one out of a message may not be."""
    return np.require(array, requirements=("C", "A"))


def _picked(ids: NDArray[Any], position: NDArray[np.int64]) -> NDArray[Any]:
    """`ids[position]` in compiled code."""
    out = np.empty(len(position), ids.dtype)
    kernel.pick_ids(ids, position, out)
    return out


def _gathered(table: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """`table[rows]` in compiled code."""
    out = np.empty((len(rows), *table.shape[1:]), table.dtype)
    if not out.size:
        return out
    width = out.nbytes // len(out)
    word = relabel.word_of(width)
    relabel.copy_rows(_words(table, word), rows, _words(out, word))
    return out


def _words(table: NDArray[Any], word: Any) -> NDArray[Any]:
    return table.reshape(len(table), -1).view(np.uint8).view(word)
