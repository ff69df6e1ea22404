"""The parts of a sharded graph on disk: one folder a shard, memory-mapped there, and what a caller must know of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._files import GraphFiles, open_array
from sp_ray_ml.graph._placement import Placement, edge_cut
from sp_ray_ml.graph._row_kernels import count_into
from sp_ray_ml.graph._sample_inputs import ALONE, SampleInputs, no_times, read_inputs
from sp_ray_ml.graph.graph import EdgeType, Graph, node_type
from sp_ray_ml.storage import new_folder

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = ["FROM_GRAPH", "LAYOUT", "open_node_times", "part_folder", "write_parts"]

FROM_GRAPH = {"weight": "edge_weight"}
"""The names that a `Graph`'s arrays of edges have in batches."""

LAYOUT = 2
"""Of the parts' files; parts of another one are written anew."""

_EDGES = 1 << 22
_ROWS = 1 << 20
_HOT = 1 << 20
"""Nodes that may be hot, of each type: a caller's cache of them would be some hundred MB."""


@dataclass(frozen=True)
class _Whole:
    """What is cut into parts: in-edges, and attributes of nodes, and of edges in the order of the in-edges."""

    inputs: SampleInputs
    nodes: Mapping[str, Mapping[str, NDArray[Any]]]
    edges: Mapping[EdgeType, Mapping[str, NDArray[Any]]]
    counted: list[str]
    """Node types whose batches say `num_nodes`."""


def part_folder(folder: Path, shard: int) -> Path:
    """The folder of one shard."""
    return folder / f"shard-{shard}"


def open_node_times(
    folder: Path, manifest: Mapping[str, Any], attribute: str | None
) -> dict[str, NDArray[np.int64]]:
    """The times of all nodes of each type that has them, int64 [nodes]; mapped, where they are of that type.

    An edge's source may be in any shard, so that each of them needs the times of all nodes, and so do callers.

    Raises:
        DataError: What is called so are no integers, one a node.
    """
    times = {}
    for i, entry in enumerate(manifest["nodes"]):
        if attribute in entry["attributes"]:
            about = entry["attributes"][attribute]
            if not _may_be_times(about):
                what = f"{np.dtype(about['dtype'])} [nodes, {about['width'] or 1}]"
                raise no_times(what, f"nodes {entry['type']}".strip())
            found = open_array(folder, f"times-{i}-{list(entry['attributes']).index(attribute)}")
            times[entry["type"]] = np.ascontiguousarray(np.asarray(found), np.int64)
    return times


def _may_be_times(about: Mapping[str, Any]) -> bool:
    return np.dtype(about["dtype"]).kind in "biu" and about["width"] in (None, 1)


def write_parts(
    data: Graph | Data | HeteroData,
    path: str | Path,
    shards: int,
    partition: Literal["hash", "edge-cut"],
    about: Mapping[str, Any],
) -> None:
    """Cut a graph into parts, in one pass over its files, in bounded memory; the folder appears whole.

    Args:
        data: A `Graph`, or PyG's `Data` or `HeteroData`.
        path: The folder.
        shards: How many parts.
        partition: Which shard has which node.
        about: What the manifest says besides.

    Raises:
        DataError: Attributes that are no arrays of one or two dimensions; edges beyond the nodes.
        StorageError: It cannot be written.
    """
    whole = _of_graph(data) if isinstance(data, Graph) else _of_pyg(data)
    inputs = whole.inputs
    placement = Placement(shards)
    if partition == "edge-cut":
        placement = Placement.by_table(shards, edge_cut(inputs, shards))
    visits = _visits(inputs)
    with new_folder(path) as folder:
        files = GraphFiles(folder)
        parts = []
        for shard in range(shards):
            part_folder(folder, shard).mkdir()
            parts.append(GraphFiles(part_folder(folder, shard)))
        hot = {}
        for i, name in enumerate(inputs.num_nodes):
            _write_nodes(parts, i, placement, name, inputs.num_nodes[name], whole.nodes[name])
            if placement.shard:
                files.save(f"shard-of-{i}", placement.shard[name])
                files.save(f"row-of-{i}", placement.row[name])
            described = _described(whole.nodes[name])
            for j, (attribute, array) in enumerate(whole.nodes[name].items()):
                if _may_be_times(described[attribute]):
                    files.save(f"times-{i}-{j}", array.reshape(-1))
            hot[name] = np.argsort(-visits[name], kind="stable")[:_HOT]
            files.save(f"hot-{i}-node", hot[name])
            files.save(f"hot-{i}-visits", visits[name][hot[name]])
        cut, consecutive = {}, {}
        for i, (kind, rows) in enumerate(inputs.rows.items()):
            cut[kind], consecutive[kind] = _write_edges(parts, i, placement, kind, inputs, whole.edges[kind])
            files.save(f"hot-edges-{i}", np.diff(rows.indptr)[hot[kind[2]]])
        manifest = {
            "layout": LAYOUT,
            "homogeneous": inputs.homogeneous,
            "graph": isinstance(data, Graph),
            "shards": shards,
            "partition": partition,
            "nodes": [
                {
                    "type": name,
                    "count": count,
                    "counted": name in whole.counted,
                    "attributes": _described(whole.nodes[name]),
                }
                for name, count in inputs.num_nodes.items()
            ],
            "edges": [
                {
                    "type": list(kind),
                    "count": len(rows.indices),
                    "cut": cut[kind],
                    "consecutive": consecutive[kind],
                    "attributes": _described(whole.edges[kind]),
                }
                for kind, rows in inputs.rows.items()
            ],
            **about,
        }
        for shard, part in enumerate(parts):
            part.finish({**manifest, "shard": shard})
        files.finish(manifest)


def _of_graph(graph: Graph) -> _Whole:
    inputs = read_inputs(graph, weight_attr=None, time_attr=None)
    edges = {}
    for kind in inputs.rows:
        if kind in graph.edges:
            found = graph.in_edges(kind)
        else:
            found = graph.edges[kind[2], kind[1].removeprefix("rev_"), kind[0]]
        arrays = {"weight": found.weight, "time": found.time}
        edges[kind] = {name: array for name, array in arrays.items() if array is not None}
    nodes = {name: {"x": graph.features[name]} if name in graph.features else {} for name in graph.num_nodes}
    return _Whole(inputs, nodes, edges, list(graph.num_nodes))


def _of_pyg(data: Data | HeteroData) -> _Whole:
    inputs = read_inputs(data, weight_attr=None, time_attr=None)
    node_stores = {name: data._store if name == ALONE else data[name] for name in inputs.num_nodes}
    edge_stores = {kind: data._store if kind[0] == ALONE else data[kind] for kind in inputs.rows}
    nodes = {
        name: {key: _array(store[key], key) for key in store if store.is_node_attr(key)}
        for name, store in node_stores.items()
    }
    edges = {}
    for kind, store in edge_stores.items():
        order = inputs.rows[kind].edge
        edges[kind] = {
            key: _array(store[key], key)[order]
            for key in store
            if key != "edge_index" and store.is_edge_attr(key)
        }
    counted = [name for name, store in node_stores.items() if "num_nodes" in store]
    return _Whole(inputs, nodes, edges, counted)


def _array(value: Any, name: str) -> NDArray[Any]:
    import torch

    if not isinstance(value, torch.Tensor) or value.dim() not in (1, 2) or value.dtype == torch.bfloat16:
        what = (
            f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
        )
        raise DataError(
            f"attributes of a sharded graph are tensors of one or two dimensions, this is {what}",
            where=name,
            hint=f"Leave it out: del data.{name}",
        )
    array: NDArray[Any] = value.detach().cpu().numpy()
    return array


def _described(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    return {name: {"dtype": array.dtype.str, "width": _width(array)} for name, array in arrays.items()}


def _width(array: NDArray[Any]) -> int | None:
    return int(array.shape[1]) if array.ndim == 2 else None


def _visits(inputs: SampleInputs) -> dict[str, NDArray[np.int64]]:
    """How many edges each node is the source of: as often as sampling comes by, roughly."""
    visits = {name: np.zeros(count, np.int64) for name, count in inputs.num_nodes.items()}
    for kind, rows in inputs.rows.items():
        count_into(rows.indices, visits[kind[0]])
    return visits


def _write_nodes(
    parts: list[GraphFiles],
    number: int,
    placement: Placement,
    name: str,
    count: int,
    attributes: Mapping[str, NDArray[Any]],
) -> None:
    ids = [part.array(f"nodes-{number}", node_type(count)) for part in parts]
    columns = [
        [part.array(f"node-{number}-{i}", array.dtype, _width(array)) for i, array in enumerate(attributes.values())]
        for part in parts
    ]  # fmt: skip
    for first in range(0, count, _ROWS):
        nodes = np.arange(first, min(first + _ROWS, count))
        shard, _ = placement.find(name, nodes)
        for s, mine in _by_shard(shard, placement.shards):
            ids[s].write(nodes[mine])
            for file, array in zip(columns[s], attributes.values(), strict=True):
                file.write(array[nodes[mine]])
    for part, file, others in zip(parts, ids, columns, strict=True):
        part.keep(file, *others)


def _write_edges(
    parts: list[GraphFiles],
    number: int,
    placement: Placement,
    kind: EdgeType,
    inputs: SampleInputs,
    attributes: Mapping[str, NDArray[Any]],
) -> tuple[int, bool]:
    """Write each shard's rows; return how many edges come from a node of another shard, and whether ids of a row are so."""
    rows = inputs.rows[kind]
    count, cut, consecutive = len(rows.indices), 0, True
    lengths = [part.array(f"edges-{number}-indptr", np.int64) for part in parts]
    # An array beside the rows, since reading each row's first id among those of all edges would wait for memory.
    firsts = [part.array(f"edges-{number}-first", node_type(count)) for part in parts]
    columns = [
        [
            part.array(f"edges-{number}-indices", rows.indices.dtype),
            part.array(f"edges-{number}-edge", node_type(count)),
            *(
                part.array(f"edge-{number}-{i}", array.dtype, _width(array))
                for i, array in enumerate(attributes.values())
            ),
        ]
        for part in parts
    ]
    filled = [0] * placement.shards
    for file in lengths:
        file.write(np.zeros(1, np.int64))
    for first, last in _pieces(rows.indptr):
        nodes = np.arange(first, last)
        begin, end = int(rows.indptr[first]), int(rows.indptr[last])
        degree = np.diff(rows.indptr[first : last + 1])
        shard, _ = placement.find(kind[2], nodes)
        ids = np.arange(begin, end) if rows.edge is None else rows.edge[begin:end]
        sources = rows.indices[begin:end]
        owner = np.repeat(shard, degree)
        steps = np.diff(ids) == 1
        begins = rows.indptr[first:last] - begin
        steps[begins[(begins > 0) & (begins < len(ids))] - 1] = True
        consecutive &= bool(steps.all())
        first_ids = np.zeros(len(nodes), np.int64)
        first_ids[degree > 0] = ids[begins[degree > 0]]
        cut += int((placement.find(kind[0], sources.astype(np.int64))[0] != owner).sum())
        for s, mine in _by_shard(shard, placement.shards):
            ends = filled[s] + np.cumsum(degree[mine])
            lengths[s].write(ends)
            firsts[s].write(first_ids[mine])
            filled[s] = int(ends[-1]) if len(ends) else filled[s]
        for s, mine in _by_shard(owner, placement.shards):
            for file, array in zip(columns[s], (sources, ids), strict=False):
                file.write(array[mine])
            for file, array in zip(columns[s][2:], attributes.values(), strict=True):
                file.write(array[begin:end][mine])
    for part, file, first_id, others in zip(parts, lengths, firsts, columns, strict=True):
        part.keep(file, first_id, *others)
    return cut, consecutive


def _pieces(indptr: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about as many edges each; a row is never cut."""
    first, count = 0, len(indptr) - 1
    while first < count:
        last = int(np.searchsorted(indptr, indptr[first] + _EDGES, side="right")) - 1
        last = min(max(last, first + 1), first + _ROWS, count)
        yield first, last
        first = last


def _by_shard(shard: NDArray[np.int32], shards: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    for s in range(shards):
        yield s, np.flatnonzero(shard == s)
