"""`construct_graph`: from tables to a graph on disk, in memory that grows with the nodes and not with the edges."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sp_ray_ml._remote import is_remote
from sp_ray_ml.data.source import Source, as_source, require_columns
from sp_ray_ml.errors import DataError, ResourceError
from sp_ray_ml.graph._assemble import Work
from sp_ray_ml.graph._base import Base
from sp_ray_ml.graph._co_occurrence import PairCounter
from sp_ray_ml.graph._edge_files import co_occurrence_of, write_co_occurrence, write_edges
from sp_ray_ml.graph._external import Limits, Spool
from sp_ray_ml.graph._files import GraphFiles
from sp_ray_ml.graph._id_table import IdTable
from sp_ray_ml.graph._ingest import read_edges, read_nodes
from sp_ray_ml.graph._node_files import write_nodes
from sp_ray_ml.graph._ray_ingest import read_edges_on_ray
from sp_ray_ml.graph.graph import EdgeType, Graph, node_type
from sp_ray_ml.graph.settings import EdgeTable, NodeTable
from sp_ray_ml.storage import new_folder, storage_errors

__all__ = ["construct_graph"]

_ROW_BYTES = 72
"""Disk an event takes at the most: its edge by source and by destination, and the partitions that these are made of."""


def construct_graph(
    path: str | Path,
    edges: Mapping[EdgeType, EdgeTable],
    nodes: Mapping[str, NodeTable] | None = None,
    *,
    base: str | Path | None = None,
    partitions: int | None = None,
    threads: int | None = None,
) -> Graph:
    """Construct a graph of tables, on disk.

    Args:
        path: The folder, which appears whole, in place of what was there.
        edges: Tables of edges by type, `{("user", "plays", "item"): EdgeTable(table=…, source=…, destination=…)}`.
        nodes: Tables of nodes by type: nodes without edges, and features. Without, a type's nodes are those that
            its edges name.
        base: Folder of a graph that these rows are added to, which may be `path` itself: yesterday's graph and
            today's events give the same bytes as all events at once, also where events come late. Tables of nodes
            replace those that the graph was made of.
        partitions: Read, encode and sort the tables of edges in tasks of Ray Data, brought together by destination in
            so many partitions; the bytes are the same. None does all of it in this process.
        threads: How many; by default as many as there are CPUs.

    Nodes are numbered in the canonical order: by the time of their first event in any table, then by id (text by
    code points); then those whose events have no times, and last those without events, by id. So the same rows give
    the same bytes, in whatever order they come.

    Returns:
        The graph, its arrays memory-mapped.

    Raises:
        ColumnNotFoundError: A table has not the columns that were named.
        DataError: An id, time or weight is missing or none, or there is a node twice; or `base` was made by other
            rules, or cannot be added to exactly: weights that are no whole numbers, and events from before its last.
        ResourceError: The disk is too small; found before anything is read.
        StorageError: The disk is full all the same, or the folder cannot be written.
    """
    return construct(path, edges, nodes or {}, base, partitions, threads or os.cpu_count() or 1)


def construct(
    path: str | Path,
    edges: Mapping[EdgeType, EdgeTable],
    nodes: Mapping[str, NodeTable],
    base_path: str | Path | None,
    partitions: int | None,
    limits: Limits | int,
) -> Graph:
    """As `construct_graph`, with limits, or so many threads and limits that fit the rows."""
    sources = {kind: _edge_source(kind, settings) for kind, settings in edges.items()}
    derived = [
        co_occurrence_of(kind) for kind, settings in edges.items() if settings.co_occurrence is not None
    ]
    if twice := [kind for kind in derived if kind in edges or derived.count(kind) > 1]:
        raise DataError(
            "there would be two kinds of these edges, one by co_occurrence",
            where="-".join(twice[0]),
            hint="Give one of the tables another node type or relation, or ask for co_occurrence of one table",
        )
    node_sources = {name: as_source(settings.table, name) for name, settings in nodes.items()}
    # What goes to a URL is made in the folder for temporary files.
    target = Path(tempfile.gettempdir()) / "graph" if is_remote(path) else Path(path)
    base = None if base_path is None else Base.load(base_path, edges)
    rows = sum(map(_rows, sources.values()))
    known = 0
    if base is not None:
        rows += sum(base.graph.edges[kind].num_edges for kind in base.about)
        known = sum(base.graph.num_nodes.values())
    _check_disk(target, rows)
    if isinstance(limits, int):
        limits = Limits.of(rows, limits)
    types = list(dict.fromkeys([*(name for kind in edges for name in (kind[0], kind[2])), *nodes]))
    tables = {name: IdTable() for name in types}
    code = np.dtype(node_type(2 * (2 * rows + known + sum(map(_rows, node_sources.values())))))
    with new_folder(path) as folder, ThreadPoolExecutor(limits.threads) as pool:
        scratch = folder / "scratch"
        with storage_errors(scratch):
            scratch.mkdir()
        work = Work(GraphFiles(folder), scratch, pool, limits)
        for name, table in tables.items():
            if base is not None and name in base.graph.num_nodes:
                base.take_up(pool, name, table, only_with_events=name in nodes, rows=limits.chunk_rows)
        events = {}
        for i, (kind, settings) in enumerate(edges.items()):
            spool = _spool(scratch / f"events-{i}", code)
            what = (pool, sources[kind], kind, settings, tables, spool, limits)
            if partitions is None:
                events[kind] = read_edges(*what)
                continue
            # What is added to sums of yesterday's is added event by event; and pairs are made of events.
            merge = settings.duplicates == "sum" and base is None and settings.co_occurrence is None
            events[kind] = read_edges_on_ray(*what, partitions=partitions, merge=merge)
        for name, node_settings in nodes.items():
            read_nodes(pool, node_sources[name], node_settings, tables[name], limits)
        place, about_nodes, order = {}, [], {}
        for i, name in enumerate(types):
            place[name], order[name], about = write_nodes(
                work, i, name, tables[name], nodes.get(name), node_sources.get(name)
            )
            about_nodes.append(about)
        about_edges = []
        counters: dict[EdgeType, PairCounter] = {}
        for i, (kind, settings) in enumerate(edges.items()):
            if settings.co_occurrence is not None:
                counters[kind] = PairCounter(len(order[kind[2]]), settings.co_occurrence, scratch)
            about_edges.append(
                write_edges(work, i, kind, settings, events[kind], order, place, counters.get(kind), base)
            )
        for kind, counter in counters.items():
            about_edges.append(write_co_occurrence(work, len(about_edges), co_occurrence_of(kind), counter))
        scratch.rmdir()
        work.files.finish({"nodes": about_nodes, "edges": about_edges})
    return Graph.load(path)


def _edge_source(kind: EdgeType, settings: EdgeTable) -> Source:
    source = as_source(settings.table, "-".join(kind))
    names = (settings.source, settings.destination, settings.time, settings.weight)
    require_columns(source.schema, [name for name in names if name], source.name)
    if settings.co_occurrence is not None and settings.time is None:
        raise DataError(
            "co_occurrence needs the time of each row", where=source.name, hint="Name the column time"
        )
    return source


def _rows(source: Source) -> int:
    """How many rows; counted where the source does not know."""
    if source.num_rows is not None:
        return source.num_rows
    return sum(batch.num_rows for batch in source.select(source.schema.names[:1]).batches())


def _check_disk(target: Path, rows: int) -> None:
    place = target.absolute()
    while not place.exists():
        place = place.parent
    with storage_errors(place, "read"):
        free = shutil.disk_usage(place).free
    needed = rows * _ROW_BYTES
    if needed > free:
        raise ResourceError(
            f"the construction of {rows:,} rows takes up to {needed / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free",
            where=str(target),
            hint=f"Free some room: df -h {place}; or construct the graph on a larger disk",
        )


def _spool(file: Path, code: np.dtype[Any]) -> Callable[[list[np.dtype[Any]]], Spool]:
    return lambda types: Spool(file, [code, code, *types])
