"""What a sampler reads: of a `Graph` or of PyG's data, the in-edges of each type as `Rows`, checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph import _edge_kernels as kernel
from sp_ray_ml.graph._sample_rows import EMPTY, Rows
from sp_ray_ml.graph.graph import ALONE, Edges, EdgeType, Graph

if TYPE_CHECKING:
    from torch_geometric.data import Data, HeteroData

__all__ = [
    "ALONE",
    "NumNeighbors",
    "SampleInputs",
    "check_times",
    "fanouts",
    "no_times",
    "read_inputs",
    "ready_rows",
    "where_edges",
]

NumNeighbors = Sequence[int] | Mapping[EdgeType, Sequence[int]]
"""Neighbours of each hop, for all edge types or by edge type; -1 for all of them."""

_NO_WEIGHT = np.empty(0, np.float32)


@dataclass(frozen=True)
class SampleInputs:
    """What is sampled of.

    Attributes:
        homogeneous: One type of nodes and of edges, without names.
        num_nodes: Of each node type.
        rows: In-edges of each edge type.
        node_time: int64 [nodes] of each node type that has times, where times are those of nodes.
    """

    homogeneous: bool
    num_nodes: Mapping[str, int]
    rows: Mapping[EdgeType, Rows]
    node_time: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


def read_inputs(
    data: Graph | Data | HeteroData, *, weight_attr: str | None, time_attr: str | None
) -> SampleInputs:
    """Read a graph.

    Raises:
        DataError: Edges beyond the nodes, no such attribute, weights or times that cannot be.
    """
    if isinstance(data, Graph):
        return _of_graph(data, weight_attr, time_attr)
    homogeneous = not hasattr(data, "edge_types")
    node_stores = {ALONE: data._store} if homogeneous else {kind: data[kind] for kind in data.node_types}
    edge_stores = (
        {(ALONE,) * 3: data._store} if homogeneous else {kind: data[kind] for kind in data.edge_types}
    )
    num_nodes = {name: int(store.num_nodes) for name, store in node_stores.items()}
    node_time: dict[str, NDArray[np.int64]] = {}
    edge_time: dict[EdgeType, NDArray[np.int64]] = {}
    if time_attr is not None:
        for name, store in node_stores.items():
            if time_attr in store and store.is_node_attr(time_attr):
                node_time[name] = _times(store[time_attr], f"nodes {name}".strip())
        for kind, store in edge_stores.items():
            if time_attr in store and store.is_edge_attr(time_attr):
                edge_time[kind] = _times(store[time_attr], where_edges(kind))
        check_times(node_time, edge_time, time_attr)
    rows = {}
    for kind, store in edge_stores.items():
        if "edge_index" not in store:
            raise DataError("there is no edge_index", where=where_edges(kind), hint="Sampling reads no adj_t")
        source, destination = (_integers(part) for part in store.edge_index)
        for nodes, count in ((source, num_nodes[kind[0]]), (destination, num_nodes[kind[2]])):
            if len(nodes) and (int(nodes.min()) < 0 or int(nodes.max()) >= count):
                raise DataError(f"an edge has a node outside the {count} there are", where=where_edges(kind))
        weight = None
        if weight_attr is not None:
            if weight_attr not in store:
                raise DataError(f"the edges have no weights {weight_attr!r}", where=where_edges(kind))
            weight = np.asarray(store[weight_attr].detach().cpu(), np.float32).reshape(-1)
        time = edge_time.get(kind)
        if node_time and kind[0] in node_time:
            time = node_time[kind[0]][source]
        indptr, indices, edge = _by_destination(source, destination, num_nodes[kind[0]], num_nodes[kind[2]])
        made = Edges(indptr, indices, None if weight is None else weight[edge], None if time is None else time[edge], edge)  # fmt: skip
        rows[kind] = ready_rows(made, kind, weighted=weight is not None, timed=time is not None)
    return SampleInputs(homogeneous, num_nodes, rows, node_time)


def check_times(nodes: Collection[str], edges: Collection[EdgeType], name: str) -> None:
    """Refuse times that both or neither of some nodes and some edges have."""
    if bool(nodes) == bool(edges):
        which = "both nodes and edges have" if nodes else "neither nodes nor edges have"
        raise DataError(f"{which} times {name!r}; sampling by time goes by those of one of them")


def no_times(dtype: Any, where: str) -> DataError:
    """What is wrong with numbers that are no integers."""
    return DataError(f"times are {dtype}, sampling takes integers", where=where, hint="Round them to seconds, say")  # fmt: skip


def _of_graph(graph: Graph, weight_attr: str | None, time_attr: str | None) -> SampleInputs:
    """The types of `Graph.to_pyg`: each edge type, and between two node types its reverse, `rev_<relation>`."""
    for asked, there in ((weight_attr, "weight"), (time_attr, "time")):
        if asked not in (None, there):
            raise DataError(f"a Graph's edges have no attribute {asked!r}, only {there!r}")
    both: dict[EdgeType, Edges] = {}
    for kind, edges in graph.edges.items():
        source, relation, destination = kind
        both[kind] = graph.in_edges(kind)
        if source != destination:
            both[destination, f"rev_{relation}", source] = edges
    rows = {}
    for kind, edges in both.items():
        if weight_attr and edges.weight is None:
            raise DataError("the edges have no weights", where=where_edges(kind))
        if time_attr and edges.time is None:
            raise DataError("the edges have no times", where=where_edges(kind))
        rows[kind] = ready_rows(edges, kind, weighted=weight_attr is not None, timed=time_attr is not None)
    return SampleInputs(False, dict(graph.num_nodes), rows)


def ready_rows(
    edges: Edges, kind: EdgeType, *, weighted: bool, timed: bool, nodes: NDArray[Any] | None = None
) -> Rows:
    """Rows without edges of weight zero, which are never taken, and in the order of time, where there are times.

    Errors name `nodes`, where rows are not those of all nodes.
    """
    result = Rows(
        indptr=_plain(edges.indptr, np.int64),
        indices=_plain(edges.indices, edges.indices.dtype),
        weight=_plain(edges.weight, np.float32) if weighted and edges.weight is not None else _NO_WEIGHT,
        time=_plain(edges.time, np.int64) if timed and edges.time is not None else EMPTY,
        edge=None if edges.edge is None else _plain(edges.edge, np.int64),
    )
    if weighted and len(result.indices):
        weight = result.weight
        if not np.isfinite(weight).all() or weight.min() < 0:
            wrong = int(np.flatnonzero(~np.isfinite(weight) | (weight < 0))[0])
            raise DataError(f"a weight is {weight[wrong]}; weights are finite and not negative", where=where_edges(kind))  # fmt: skip
        if weight.min() == 0:
            result = _without_zeros(result, kind, nodes)
    if len(result.time):
        row = np.repeat(np.arange(len(result.indptr) - 1), np.diff(result.indptr))
        if (np.diff(result.time) < 0)[np.diff(row) == 0].any():
            result = _reordered(result, np.lexsort((result.time, row)), result.indptr)
    return result


def _without_zeros(rows: Rows, kind: EdgeType, nodes: NDArray[Any] | None) -> Rows:
    kept = np.flatnonzero(rows.weight)
    before = np.concatenate([[0], np.cumsum(rows.weight > 0)]).astype(np.int64)
    indptr = before[rows.indptr]
    lost = np.flatnonzero((np.diff(rows.indptr) > 0) & (np.diff(indptr) == 0))
    if len(lost):
        node = int(lost[0] if nodes is None else nodes[lost[0]])
        raise DataError(
            f"all {int(np.diff(rows.indptr)[lost[0]])} edges that lead to node {node} have weight 0, so "
            "that none can be drawn",
            where=where_edges(kind),
            hint="Leave these edges out, or give them a weight",
        )
    return _reordered(rows, kept, indptr)


def _reordered(rows: Rows, order: NDArray[np.int64], indptr: NDArray[np.int64]) -> Rows:
    return replace(
        rows,
        indptr=indptr,
        indices=rows.indices[order],
        weight=rows.weight[order] if len(rows.weight) else rows.weight,
        time=rows.time[order] if len(rows.time) else rows.time,
        edge=order if rows.edge is None else rows.edge[order],
    )


def _by_destination(
    source: NDArray[np.int64], destination: NDArray[np.int64], num_sources: int, num_rows: int
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]:
    indptr = np.zeros(num_rows + 2, np.int64)
    indices = np.empty(len(source), np.int32 if num_sources < 2**31 else np.int64)
    edge = np.empty(len(source), np.int64)
    kernel.by_destination(source, destination, indptr, indices, edge)
    return indptr[:-1].copy(), indices, edge


def _plain(array: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """The same memory as a plain array, also where it is mapped from a file."""
    return np.ascontiguousarray(np.asarray(array), dtype)


def _integers(tensor: Any) -> NDArray[np.int64]:
    return np.ascontiguousarray(tensor.detach().cpu().numpy(), np.int64)


def _times(tensor: Any, where: str) -> NDArray[np.int64]:
    if tensor.is_floating_point():
        raise no_times(tensor.dtype, where)
    return _integers(tensor).reshape(-1)


def where_edges(kind: EdgeType) -> str:
    """How an error names an edge type."""
    return "edges" if kind == (ALONE,) * 3 else f"edges {'-'.join(kind)}"


def fanouts(given: NumNeighbors, inputs: SampleInputs) -> dict[EdgeType, list[int]]:
    """Neighbours of each hop by edge type.

    Raises:
        ConfigError: They do not fit the graph, or one another.
    """
    where = "num_neighbors"
    by_type: dict[EdgeType, list[int]]
    if isinstance(given, Mapping):
        unknown = [kind for kind in given if kind not in inputs.rows]
        missing = [kind for kind in inputs.rows if kind not in given]
        if unknown or missing:
            wrong = f"no edge type {unknown[0]}" if unknown else f"none for the edge type {missing[0]}"
            raise ConfigError(f"there is {wrong}", where=where, hint=f"Edge types: {', '.join(map(str, inputs.rows))}")  # fmt: skip
        by_type = {kind: list(given[kind]) for kind in inputs.rows}
    else:
        by_type = {kind: list(given) for kind in inputs.rows}
    hops = {len(values) for values in by_type.values()}
    if len(hops) > 1 or hops == {0}:
        raise ConfigError("every edge type takes one number a hop, for the same number of hops, 1 or more", where=where)  # fmt: skip
    for value in (value for values in by_type.values() for value in values):
        if not isinstance(value, int) or value < -1:
            raise ConfigError(f"{value!r} is no number of neighbors; -1 takes all", where=where)
    return by_type
