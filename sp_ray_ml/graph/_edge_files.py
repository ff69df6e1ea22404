"""The files of one edge type: spooled events, and yesterday's edges, become rows by source and by destination."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._assemble import EdgeWriter, Work, write_by_destination, write_by_source, write_pairs
from sp_ray_ml.graph._base import Base
from sp_ray_ml.graph._co_occurrence import PairCounter
from sp_ray_ml.graph._external import Columns
from sp_ray_ml.graph._ingest import EdgeEvents
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.graph.settings import EdgeTable
from sp_ray_ml.logger import LOGGER

__all__ = ["co_occurrence_of", "write_co_occurrence", "write_edges"]


def write_edges(
    work: Work,
    number: int,
    kind: EdgeType,
    settings: EdgeTable,
    events: EdgeEvents,
    order: Mapping[str, NDArray[np.int64]],
    place: Mapping[str, NDArray[Any]],
    pairs: PairCounter | None,
    base: Base | None,
) -> dict[str, Any]:
    """Write the edges of one type, by source and by destination.

    Args:
        work: Where and how.
        number: Of the edge type.
        kind: The edge type.
        settings: Its rules.
        events: What was read of it.
        order: Codes in the canonical order, by node type.
        place: Place of each code in it, by node type.
        pairs: Counts co-occurrence, where that is asked for.
        base: The graph that is added to, if there is one.

    Returns:
        What the manifest says.
    """
    source, destination = place[kind[0]], place[kind[2]]
    merge = settings.duplicates == "sum"

    def chunk(index: int) -> Callable[[], Columns]:
        def made() -> Columns:
            first, second, *rest = events.spool.chunk(index)
            if events.weight is None and weight is not None:
                rest.append(np.ones(len(first), weight))
            return (source[first], destination[second], *rest)

        return made

    counts = _padded(events.sources, len(source))
    weight = events.weight
    chunks: Iterable[Callable[[], Columns]] = map(chunk, range(len(events.spool.rows)))
    if base is not None and kind in base.about:
        base.add_to(kind, settings, events)
        codes, degrees = base.degrees(kind)
        counts[codes] += degrees
        if merge:
            weight = np.dtype(np.float64 if kind in base.total else np.float32)
        chunks = chain(base.chunks(kind, place, weight, work.limits.chunk_rows), chunks)

    writer = EdgeWriter(
        work.files,
        f"edges-{number}-",
        len(order[kind[2]]),
        weight=merge or settings.weight is not None,
        time=settings.time is not None,
        totals=merge,
    )
    into = write_by_source(
        work,
        chunks,
        counts[order[kind[0]]],
        len(order[kind[2]]),
        time=settings.time is not None,
        weight=weight,
        merge=merge,
        writer=writer,
        pairs=pairs,
    )
    events.spool.remove()
    arrays, indptr = writer.finish()
    in_arrays = write_by_destination(work, number, indptr, into, arrays)
    LOGGER.info(
        "%s: %s rows, %s edges, %s rows from a node to itself%s",
        "-".join(kind), f"{events.rows:,}", f"{int(indptr[-1]):,}", f"{events.self_loops:,}",
        " left out" if settings.self_loops == "drop" else "",
    )  # fmt: skip
    return {
        "type": list(kind),
        "arrays": arrays,
        "in_arrays": in_arrays,
        "duplicates": settings.duplicates,
        "self_loops": settings.self_loops,
        "weighted": settings.weight is not None,
        "rows": events.rows,
        "loops": events.self_loops,
        "total": writer.has_total,
        "last_time": None if events.times is None else events.times[1],
        "whole": events.whole,
    }


def _padded(counts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Counts by code, of all codes that there are in the end."""
    return (
        counts
        if len(counts) >= length
        else np.concatenate([counts, np.zeros(length - len(counts), np.int64)])
    )


def co_occurrence_of(kind: EdgeType) -> EdgeType:
    """The type of edges between destinations that one source had."""
    return kind[2], "with", kind[2]


def write_co_occurrence(work: Work, number: int, kind: EdgeType, counter: PairCounter) -> dict[str, Any]:
    """Write what was counted; returns what the manifest says."""
    writer = EdgeWriter(work.files, f"edges-{number}-", counter.num_nodes, weight=True, time=False)
    into = write_pairs(counter, writer)
    arrays, indptr = writer.finish()
    in_arrays = write_by_destination(work, number, indptr, into, arrays)
    return {
        "type": list(kind),
        "arrays": arrays,
        "in_arrays": in_arrays,
        "derived": True,
    }
