"""From spooled events to the files of one edge type: sorted by source, then brought into the order of destinations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._co_occurrence import PairCounter
from sp_ray_ml.graph._external import Columns, Limits, Partitions, in_order
from sp_ray_ml.graph._files import HEADER_BYTES, ArrayFile, GraphFiles
from sp_ray_ml.graph._row_kernels import count_into, expand, group
from sp_ray_ml.graph._rows import SortedRows, merged, sorted_rows
from sp_ray_ml.graph.graph import node_type

__all__ = ["EdgeWriter", "Work", "write_by_destination", "write_by_source", "write_pairs"]


@dataclass(frozen=True)
class Work:
    """Where and how the work is done.

    Attributes:
        files: The graph's.
        scratch: Folder for what is removed again.
        pool: Threads.
        limits: Rows at a time.
    """

    files: GraphFiles
    scratch: Path
    pool: Executor
    limits: Limits


class EdgeWriter:
    """The files of one edge type's rows, written row after row.

    Args:
        files: The graph's.
        prefix: `edges-<number>-`.
        num_others: How many nodes the others of the rows are.
        weight: Whether there are weights.
        time: Whether there are times.
        edge: Whether there are places of edges in the order of their sources.
        totals: Whether sums of weights are also kept as float64, where one is not a float32: what is added to them
            later then gives the same as if all had been added at once.
    """

    def __init__(
        self,
        files: GraphFiles,
        prefix: str,
        num_others: int,
        *,
        weight: bool,
        time: bool,
        edge: bool = False,
        totals: bool = False,
    ) -> None:
        self._files, self._prefix, self._totals = files, prefix, totals
        types: dict[str, Any] = {"indices": node_type(num_others)}
        types |= {"weight": np.float32} if weight else {}
        types |= {"time": np.int64} if time else {}
        types |= {"edge": np.int64} if edge else {}
        self._arrays = {name: files.array(prefix + name, kind) for name, kind in types.items()}
        self._total: ArrayFile | None = None
        self._lengths: list[NDArray[np.int64]] = []

    def write(self, lengths: NDArray[np.int64], **columns: NDArray[Any] | None) -> None:
        """Append rows: how many edges each has, and the columns of all of them."""
        total = columns["weight"] if "weight" in self._arrays else None
        if total is not None and self._totals:
            self._write_total(total)
        for name, array in self._arrays.items():
            column = columns[name]
            assert column is not None
            array.write(column)
        self._lengths.append(lengths)

    def _write_total(self, total: NDArray[Any]) -> None:
        with np.errstate(over="ignore"):
            rounded = total.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise DataError(
                "the weights of an edge add up to more than a float32 holds",
                where=self._prefix.rstrip("-"),
                hint="Scale the weights in the query",
            )
        if self._total is None and (rounded != total).any():
            self._total = self._files.array(self._prefix + "total", np.float64)
            for piece in self._arrays["weight"].pieces():
                self._total.write(piece.astype(np.float64))
        if self._total is not None:
            self._total.write(total)

    def finish(self) -> tuple[list[str], NDArray[np.int64]]:
        """The names of the arrays, and `indptr`."""
        indptr = np.concatenate([[0], *self._lengths]).astype(np.int64)
        np.cumsum(indptr, out=indptr)
        self._files.save(self._prefix + "indptr", indptr)
        self._files.keep(*self._arrays.values(), *([self._total] if self._total else []))
        return ["indptr", *self._arrays], indptr

    @property
    def has_total(self) -> bool:
        """Whether there is a file of sums as float64."""
        return self._total is not None


def write_by_source(
    work: Work,
    chunks: Iterable[Callable[[], Columns]],
    counts: NDArray[np.int64],
    num_others: int,
    *,
    time: bool,
    weight: np.dtype[Any] | None,
    merge: bool,
    writer: EdgeWriter,
    pairs: PairCounter | None,
) -> NDArray[np.int64]:
    """Sort the events of one edge type by source and write them.

    Args:
        work: Where and how.
        chunks: Each gives source, destination, and time and weight where there are.
        counts: Events of each source, [sources].
        num_others: How many destinations.
        time: Whether there are times.
        weight: The type of the weights, or None.
        merge: Whether events of a pair become one edge.
        writer: Takes the rows.
        pairs: Counts co-occurrence, where that is asked for.

    Returns:
        Edges of each destination, [destinations].
    """
    types: list[np.dtype[Any]] = [np.dtype(node_type(len(counts))), np.dtype(node_type(num_others))]
    types += [np.dtype(np.int64)] if time else []
    types += [weight] if weight is not None else []
    partitions = Partitions(work.scratch, counts, types, work.limits)
    partitions.fill(work.pool, chunks)
    into = np.zeros(num_others, np.int64)

    def run(number: int) -> tuple[SortedRows, Any]:
        row, other, *rest = partitions.read(number)
        begin, end = partitions.begins[number : number + 2].tolist()
        rows = sorted_rows(
            row,
            other,
            rest[0] if time else None,
            rest[-1] if weight is not None else None,
            base=begin,
            num_rows=end - begin,
        )
        return rows, merged(rows) if merge else None

    for rows, one in in_order(work.pool, run, range(len(partitions)), work.limits.threads):
        if pairs is not None:
            pairs.add(rows)
        other = rows.other if one is None else one.other
        writer.write(
            np.diff(rows.indptr if one is None else one.indptr),
            indices=other,
            weight=rows.weight if one is None else one.total,
            time=rows.time if one is None else one.time,
        )
        count_into(other, into)
    partitions.remove()
    return into


def write_by_destination(
    work: Work, number: int, indptr: NDArray[np.int64], into: NDArray[np.int64], arrays: list[str]
) -> list[str]:
    """Write the edges of a type, which lie sorted by source, sorted by destination too.

    Args:
        work: Where and how.
        number: Of the edge type.
        indptr: Of the sources.
        into: Edges of each destination, [destinations].
        arrays: Names of the arrays by source.

    Returns:
        Names of the arrays by destination.
    """
    sources, total = len(indptr) - 1, int(indptr[-1])
    row = np.dtype(node_type(sources))
    columns = [name for name in ("weight", "time") if name in arrays]
    kinds = {
        "indices": np.dtype(node_type(len(into))),
        "weight": np.dtype(np.float32),
        "time": np.dtype(np.int64),
    }

    def stored(name: str, begin: int, count: int) -> NDArray[Any]:
        file, kind = work.files.folder / f"edges-{number}-{name}.npy", kinds[name]
        return np.fromfile(file, kind, count, offset=HEADER_BYTES + begin * kind.itemsize)

    def chunk(begin: int) -> Callable[[], Columns]:
        def made() -> Columns:
            count = min(work.limits.chunk_rows, total - begin)
            source = np.empty(count, row)
            expand(indptr, begin, source)
            edge = np.arange(begin, begin + count)
            return (
                stored("indices", begin, count),
                source,
                edge,
                *(stored(name, begin, count) for name in columns),
            )

        return made

    types = [kinds["indices"], row, np.dtype(np.int64), *(kinds[name] for name in columns)]
    partitions = Partitions(work.scratch, into, types, work.limits)
    partitions.fill(work.pool, (chunk(begin) for begin in range(0, total, work.limits.chunk_rows)))
    writer = EdgeWriter(
        work.files,
        f"edges-{number}-in-",
        sources,
        weight="weight" in columns,
        time="time" in columns,
        edge=True,
    )

    def run(part: int) -> tuple[NDArray[np.int64], Columns]:
        node, *rest = partitions.read(part)
        begin, end = partitions.begins[part : part + 2].tolist()
        rows, order = np.zeros(end - begin + 1, np.int64), np.empty(len(node), np.int64)
        group(node, begin, rows, order)
        return np.diff(rows), tuple(column[order] for column in rest)

    for lengths, (source, edge, *rest) in in_order(
        work.pool, run, range(len(partitions)), work.limits.threads
    ):
        writer.write(lengths, indices=source, edge=edge, **dict(zip(columns, rest, strict=True)))
    partitions.remove()
    return writer.finish()[0]


def write_pairs(pairs: PairCounter, writer: EdgeWriter) -> NDArray[np.int64]:
    """Write co-occurrence edges; returns the edges of each destination."""
    into = np.zeros(pairs.num_nodes, np.int64)
    for lengths, other, weight in pairs.finish():
        writer.write(lengths, indices=other, weight=weight)
        count_into(other, into)
    return into
