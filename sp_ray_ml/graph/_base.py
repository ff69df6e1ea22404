"""Yesterday's graph as the beginning of today's: its ids, first times and edges are taken up as they were left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._external import Columns
from sp_ray_ml.graph._files import open_array, read_manifest
from sp_ray_ml.graph._id_table import IdTable
from sp_ray_ml.graph._ingest import EdgeEvents, encode
from sp_ray_ml.graph._row_kernels import expand
from sp_ray_ml.graph.graph import EdgeType, Graph, node_type
from sp_ray_ml.graph.settings import EdgeTable

__all__ = ["Base"]

_EXACT = 2**53
"""Whole numbers below it add up in float64 to the same in any order."""


@dataclass(frozen=True)
class Base:
    """A constructed graph that rows are added to.

    Attributes:
        path: Its folder.
        graph: It.
        first: First event's time of each node, by node type.
        with_events: How many nodes have events, by node type: they come first.
        about: What the manifest says, by edge type.
        total: Sums of weights as float64 by edge type, where float32 does not hold them.
        codes: Code of each node among today's, by node type; filled by `take_up`.
    """

    path: Path
    graph: Graph
    first: Mapping[str, NDArray[np.int64]]
    with_events: Mapping[str, int]
    about: Mapping[EdgeType, Mapping[str, Any]]
    total: Mapping[EdgeType, NDArray[np.float64]]
    codes: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, edges: Mapping[EdgeType, EdgeTable]) -> Base:
        """Open a graph to add to.

        Raises:
            DataError: It was not made by `construct_graph`, or by other rules.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if not all("with_events" in entry for entry in manifest["nodes"]):
            raise DataError("construct_graph did not make it: it has no ids to add to", where=str(folder))
        about: dict[EdgeType, Mapping[str, Any]] = {}
        total = {}
        for i, entry in enumerate(manifest["edges"]):
            if entry.get("derived"):
                continue
            source, relation, destination = entry["type"]
            about[source, relation, destination] = entry
            if entry["total"]:
                total[source, relation, destination] = open_array(folder, f"edges-{i}-total")
        for kind, entry in about.items():
            _check(folder, kind, entry, edges.get(kind))
        nodes = manifest["nodes"]
        return cls(
            folder,
            Graph.load(folder),
            {entry["type"]: open_array(folder, f"first-{i}") for i, entry in enumerate(nodes)},
            {entry["type"]: entry["with_events"] for entry in nodes},
            about,
            total,
        )

    def take_up(
        self, pool: Executor, name: str, table: IdTable, *, only_with_events: bool, rows: int
    ) -> None:
        """Add the nodes of a type to a table, with their first times; those without events unless left out."""
        ids = self.graph.ids[name]
        count = self.with_events[name] if only_with_events else len(ids)
        codes = np.empty(count, np.int64)
        for begin in range(0, count, rows):
            some = slice(begin, min(count, begin + rows))
            column = pa.chunked_array([ids.slice(begin, some.stop - begin)])
            [codes[some]] = encode(
                pool, [(table, column, f"{self.path}: {name}")], np.asarray(self.first[name][some])
            )
        self.codes[name] = codes

    def degrees(self, kind: EdgeType) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Codes of the sources of an edge type, and how many edges each has."""
        codes = self.codes[kind[0]]
        return codes, np.diff(self.graph.edges[kind].indptr[: len(codes) + 1])

    def chunks(
        self,
        kind: EdgeType,
        place: Mapping[str, NDArray[Any]],
        weight: np.dtype[Any] | None,
        rows: int,
    ) -> Iterator[Callable[[], Columns]]:
        """The edges of a type by chunk, as events with the numbers that their nodes have today."""
        edges = self.graph.edges[kind]
        source, destination = (place[name][self.codes[name]] for name in (kind[0], kind[2]))
        total = self.total.get(kind, edges.weight)

        def made(begin: int) -> Columns:
            some = slice(begin, min(edges.num_edges, begin + rows))
            row = np.empty(some.stop - begin, node_type(len(source)))
            expand(np.asarray(edges.indptr), begin, row)
            columns: list[NDArray[Any]] = [source[row], destination[edges.indices[some]]]
            columns += [] if edges.time is None else [np.asarray(edges.time[some])]
            if weight is not None:
                assert total is not None
                columns.append(np.asarray(total[some], weight))
            return tuple(columns)

        for begin in range(0, edges.num_edges, rows):
            yield lambda begin=begin: made(begin)  # type: ignore[misc]

    def add_to(self, kind: EdgeType, settings: EdgeTable, events: EdgeEvents) -> None:
        """Make what is known of today's rows what is known of all.

        Raises:
            DataError: Sums of weights could differ in their last digits from those of all rows at once.
        """
        entry = self.about[kind]
        whole = None if events.whole is None or entry["whole"] is None else events.whole + entry["whole"]
        last = entry["last_time"]
        exact = settings.duplicates == "keep" or (whole is not None and whole < _EXACT)
        later = events.times is None or last is None or events.times[0] > last
        if not exact and events.rows and not (settings.time and later):
            raise DataError(
                "its rows reach back before the last one of the graph that they are added to; sums of weights that are "
                "no whole numbers would differ in their last digits from those of all rows at once",
                where="-".join(kind),
                hint="Construct the graph anew of all rows, without base",
            )
        events.whole = whole
        events.rows += entry["rows"]
        events.self_loops += entry["loops"]
        if last is not None:
            low, high = events.times or (last, last)
            events.times = (low, max(high, last))


def _check(folder: Path, kind: EdgeType, entry: Mapping[str, Any], settings: EdgeTable | None) -> None:
    where = f"{folder}: {'-'.join(kind)}"
    if settings is None:
        raise DataError(
            "the graph has these edges, and no table of them was given",
            where=where,
            hint="Name a table for every edge type; it may have no rows",
        )
    now = {
        "duplicates": settings.duplicates,
        "self_loops": settings.self_loops,
        "time": settings.time is not None,
        "weight": settings.weight is not None,
    }
    then = {
        "duplicates": entry["duplicates"],
        "self_loops": entry["self_loops"],
        "time": "time" in entry["arrays"],
        "weight": entry["weighted"],
    }
    if now != then:
        wrong = ", ".join(
            f"{name}: {then[name]} then, {now[name]} now" for name in now if now[name] != then[name]
        )
        raise DataError(f"the graph was made by other rules: {wrong}", where=where, hint="Construct it anew")
    if settings.co_occurrence is not None and settings.duplicates == "sum":
        raise DataError(
            "co_occurrence needs all events, and the graph has only one edge a pair",
            where=where,
            hint="Construct it with duplicates: keep to add to it, or anew each day",
        )
