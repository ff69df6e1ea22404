"""From tables to codes: rows are read in chunks, their ids encoded by threads, and what is left of them spooled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data._columns import nanoseconds, number_unit, plain, plain_type
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._external import Columns, Limits, Spool
from sp_ray_ml.graph._id_table import SHARDS, IdTable, Rows, ids_of
from sp_ray_ml.graph._row_kernels import count_into
from sp_ray_ml.graph._rows import NEVER, UNTIMED
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.graph.settings import EdgeTable, NodeTable

__all__ = [
    "EdgeEvents",
    "ahead",
    "encode",
    "events_of",
    "read_edges",
    "read_nodes",
    "room",
    "times_of",
    "weights_of",
]


_SHARDS_A_TASK = 4


@dataclass
class EdgeEvents:
    """What was read of one edge type.

    Attributes:
        spool: Codes of source and destination, time and weight (where there are such columns), by chunk.
        weight: Type of the spooled weights; None where there are none.
        sources: int64, rows of each source's code.
        rows: How many rows were kept.
        self_loops: How many rows led from a node to itself, kept or not.
        times: Earliest and latest, where there are times.
        whole: Sum of the weights' magnitudes where all are whole numbers: below 2^53 their sums are exact, whatever
            the order. None where one is not.
    """

    spool: Spool
    weight: np.dtype[Any] | None
    sources: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1024, np.int64))
    rows: int = 0
    self_loops: int = 0
    times: tuple[int, int] | None = None
    whole: int | None = 0

    def join(self, rows: int, loops: int, low: int | None, high: int | None, whole: int | str | None) -> None:
        """Add what is known of some rows."""
        self.rows += rows
        self.self_loops += loops
        if low is not None and high is not None:
            before = self.times or (low, high)
            self.times = (min(low, before[0]), max(high, before[1]))
        self.whole = None if self.whole is None or whole is None else self.whole + int(whole)


def events_of(
    time: NDArray[np.int64] | None, weight: NDArray[Any] | None, rows: int
) -> tuple[int | None, int | None, int | None]:
    """The earliest and the latest time of some rows, and the sum of their weights' magnitudes if all are whole."""
    low, high = (None, None) if time is None or not rows else (int(time.min()), int(time.max()))
    if weight is None:
        return low, high, rows
    if not (weight == np.rint(weight)).all():
        return low, high, None
    return low, high, int(np.abs(weight.astype(np.float64)).sum())


def ahead(stream: Iterator[Any]) -> Iterator[Any]:
    """The same, the next one read while the last is worked on."""
    end = object()
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, stream, end)
        while (item := following.result()) is not end:
            following = reader.submit(next, stream, end)
            yield item


def encode(
    pool: Executor,
    columns: list[tuple[IdTable, pa.ChunkedArray, str]],
    time: NDArray[np.int64],
    *,
    add: bool = True,
) -> list[NDArray[np.int64]]:
    """Codes of some columns of one chunk: hashed a column a thread, looked up a shard a thread.

    Args:
        pool: The threads.
        columns: Each with its table, and what messages call it.
        time: Of each row, or one for all.
        add: Whether unknown ids are added; else they are -1.
    """
    # What kind of ids a table has is settled by its first column, before threads look.
    hashed: list[Future[tuple[Rows, bool]]] = []
    for table, column, where in columns:
        if table.text is None:
            hashed.append(_done(ids_of(column, where, time, text=None)))
            table.text = hashed[-1].result()[1]
        else:
            hashed.append(pool.submit(ids_of, column, where, time, text=table.text))
    rows = [future.result()[0] for future in hashed]
    codes = [np.empty(len(each), np.int64) for each in rows]
    tables = {id(table): table for table, _, _ in columns}

    def visit(table: IdTable, begin: int) -> None:
        for i, (mine, _, _) in enumerate(columns):
            if mine is table:
                for shard in range(begin, begin + _SHARDS_A_TASK):
                    (table.visit if add else table.find)(shard, rows[i], codes[i])

    begins = range(0, SHARDS, _SHARDS_A_TASK)
    tasks = [pool.submit(visit, table, begin) for begin in begins for table in tables.values()]
    for task in tasks:
        task.result()
    return codes


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def read_edges(
    pool: Executor,
    source: Source,
    kind: EdgeType,
    settings: EdgeTable,
    tables: dict[str, IdTable],
    spool: Callable[[list[np.dtype[Any]]], Spool],
    limits: Limits,
) -> EdgeEvents:
    """Read a table of edges.

    Args:
        pool: The threads.
        source: The table.
        kind: The edge type.
        settings: The columns and rules.
        tables: By node type; the ids are added.
        spool: Makes a spool of columns with these types beside the two of codes.
        limits: How much at a time.

    Raises:
        DataError: An id, a time or a weight is missing or none.
    """
    names = [settings.source, settings.destination, *filter(None, (settings.time, settings.weight))]
    source = source.select(list(dict.fromkeys(names)))
    types: list[np.dtype[Any]] = [np.dtype(np.int64)] if settings.time else []
    types += [np.dtype(np.float32)] if settings.weight else []
    events = EdgeEvents(spool(types), types[-1] if settings.weight else None)
    loops = kind[0] == kind[2]
    written: Future[None] = _done(None)
    with ThreadPoolExecutor(1) as writer:
        for batch in ahead(source.blocks(limits.chunk_rows)):
            table = pa.Table.from_batches([batch])
            time = times_of(table, settings, source.name)
            weight = (
                weights_of(table[settings.weight], f"{source.name}.{settings.weight}")
                if settings.weight
                else None
            )
            codes = encode(
                pool,
                [
                    (tables[kind[0]], table[settings.source], f"{source.name}.{settings.source}"),
                    (tables[kind[2]], table[settings.destination], f"{source.name}.{settings.destination}"),
                ],
                np.array([UNTIMED]) if time is None else time,
            )
            columns: Columns = (*codes, *(each for each in (time, weight) if each is not None))
            found = 0
            if loops:
                same = codes[0] == codes[1]
                found = int(same.sum())
                if settings.self_loops == "drop" and same.any():
                    columns = tuple(column[~same] for column in columns)
                    time = None if time is None else time[~same]
                    weight = None if weight is None else weight[~same]
            rows = len(columns[0])
            events.join(rows, found, *events_of(time, weight, rows))
            events.sources = room(events.sources, tables[kind[0]].end)
            written.result()
            written = writer.submit(events.spool.append, columns)
            count_into(columns[0], events.sources)
        written.result()
    return events


def room(counts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Counts by code, with room for more codes."""
    if len(counts) >= length:
        return counts
    longer = np.zeros(max(length, 3 * len(counts) // 2), np.int64)
    longer[: len(counts)] = counts
    return longer


def times_of(table: pa.Table, settings: EdgeTable, where: str) -> NDArray[np.int64] | None:
    """Times of the rows as nanoseconds since 1970, where there is such a column.

    Raises:
        DataError: One is missing, out of range or none.
    """
    if settings.time is None:
        return None
    time = nanoseconds(table[settings.time], f"{where}.{settings.time}")
    if len(time) and int(time.max()) >= UNTIMED:
        raise DataError("a time is out of range (1677 to 2262)", where=f"{where}.{settings.time}")
    return time


def weights_of(column: pa.ChunkedArray, where: str) -> NDArray[np.float32]:
    """Weights as float32.

    Raises:
        DataError: One is missing or not finite, or they are no numbers.
    """
    if number_unit(column.type) != "number":
        raise DataError(f"weights must be numbers, these are {plain_type(column.type)}", where=where)
    if column.null_count:
        raise DataError(f"{column.null_count:,} of {len(column):,} rows have no weight", where=where)
    values = plain(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0))
    # A zero has one sign, so that equal weights have equal bytes.
    weight: NDArray[np.float32] = values.cast(pa.float32(), safe=False).to_numpy(
        zero_copy_only=False
    ) + np.float32(0)
    if not np.isfinite(weight).all():
        raise DataError(
            f"{int((~np.isfinite(weight)).sum()):,} weights are not finite as float32", where=where
        )
    return weight


def read_nodes(pool: Executor, source: Source, settings: NodeTable, table: IdTable, limits: Limits) -> None:
    """Read the ids of a table of nodes.

    Raises:
        DataError: An id is missing or there twice.
    """
    where = f"{source.name}.{settings.id}"
    require_columns(source.schema, [settings.id, *settings.features], source.name)
    seen = np.zeros(0, np.int64)
    for batch in ahead(source.select([settings.id]).blocks(limits.chunk_rows)):
        [codes] = encode(pool, [(table, pa.chunked_array([batch.column(0)]), where)], np.array([NEVER]))
        seen = room(seen, table.end)
        count_into(codes, seen)
        twice = codes[seen[codes] > 1]
        if len(twice):
            raise DataError(
                f"the id {table.ids(twice[:1])[0].as_py()!r} is there more than once",
                where=where,
                hint="Give one row a node, for instance with a query that groups by the id",
            )
