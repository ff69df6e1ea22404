"""Tables of edges read and sorted by Ray Data: ids are gathered, then rows brought together by destination."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._external import Columns, Limits, Spool
from sp_ray_ml.graph._id_table import SHARDS, IdTable, ids_of
from sp_ray_ml.graph._ingest import EdgeEvents, encode, events_of, room, times_of, weights_of
from sp_ray_ml.graph._row_kernels import count_into
from sp_ray_ml.graph._rows import UNTIMED, merged, sorted_rows
from sp_ray_ml.graph.graph import EdgeType
from sp_ray_ml.graph.settings import EdgeTable

__all__ = ["read_edges_on_ray"]

_PARTITION = "partition"


def read_edges_on_ray(
    pool: Executor,
    source: Source,
    kind: EdgeType,
    settings: EdgeTable,
    tables: dict[str, IdTable],
    spool: Callable[[list[np.dtype[Any]]], Spool],
    limits: Limits,
    *,
    partitions: int,
    merge: bool,
) -> EdgeEvents:
    """As `read_edges`, in tasks of Ray. This process sees each block's distinct ids, and the edges when merged.

    Args:
        pool: Threads of this process.
        source: The table.
        kind: The edge type.
        settings: The columns and rules.
        tables: By node type; the ids are added.
        spool: Makes a spool of columns with these types beside the two of codes.
        limits: Rows at a time.
        partitions: Into how many the rows are brought, by destination.
        merge: Whether rows of a pair become one edge there already.

    Raises:
        DataError: An id, a time or a weight is missing or none.
    """
    import ray

    names = [settings.source, settings.destination, *filter(None, (settings.time, settings.weight))]
    dataset = source.select(list(dict.fromkeys(names))).to_ray()
    weight = np.dtype(np.float64) if merge else np.dtype(np.float32) if settings.weight else None
    types: list[np.dtype[Any]] = [np.dtype(np.int64)] if settings.time else []
    events = EdgeEvents(spool([*types, *([] if weight is None else [weight])]), weight)
    same = kind[0] == kind[2]
    for found in _tables(
        dataset.map_batches(
            _distinct, batch_size=limits.chunk_rows, batch_format="pyarrow",
            fn_kwargs={"settings": settings_only(settings), "name": source.name, "same": same},
        )
    ):  # fmt: skip
        for row in found.to_batches(max_chunksize=1):
            if (wrong := row["error"][0].as_py()) is not None:
                message, where, hint = json.loads(wrong)
                raise DataError(message, where=where, hint=hint)
            for name, role, column in (
                (kind[0], "source", settings.source),
                (kind[2], "destination", settings.destination),
            ):
                ids = pa.chunked_array([row[f"{role}_ids"].flatten()])
                first = row[f"{role}_first"].flatten().to_numpy()
                encode(pool, [(tables[name], ids, f"{source.name}.{column}")], first)
            events.join(*(row[part][0].as_py() for part in ("rows", "loops", "low", "high", "whole")))
    events.sources = room(events.sources, tables[kind[0]].end)
    if not events.rows:  # a shuffle of blocks that are all empty fails in Ray 2.60: they have no columns
        return events
    known = ray.put((tables[kind[0]], tables[kind[2]]))
    coded = dataset.map_batches(
        _coded, batch_size=limits.chunk_rows, batch_format="pyarrow",
        fn_kwargs={
            "settings": settings_only(settings), "name": source.name, "same": same, "known": [known],
            "partitions": partitions,
        },
    )  # fmt: skip
    sorted_parts = coded.groupby(_PARTITION, num_partitions=partitions).map_groups(
        _sorted, batch_format="pyarrow", fn_kwargs={"merge": merge}
    )
    for part in _tables(sorted_parts):
        columns: Columns = tuple(
            part[name].to_numpy()
            for name in ("source", "destination", "time", "weight")
            if name in part.column_names
        )
        if not len(columns[0]):
            continue
        for begin in range(0, len(columns[0]), limits.chunk_rows):
            chunk = tuple(column[begin : begin + limits.chunk_rows] for column in columns)
            events.spool.append(chunk)
            count_into(chunk[0], events.sources)
    return events


def settings_only(settings: EdgeTable) -> EdgeTable:
    """Without the table, which tasks do not need."""
    return settings.model_copy(update={"table": None})


def _tables(dataset: Any) -> Iterator[pa.Table]:
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _read(
    table: pa.Table, settings: EdgeTable, name: str
) -> tuple[NDArray[np.int64] | None, NDArray[np.float32] | None]:
    weight = weights_of(table[settings.weight], f"{name}.{settings.weight}") if settings.weight else None
    return times_of(table, settings, name), weight


def _distinct(table: pa.Table, *, settings: EdgeTable, name: str, same: bool) -> pa.Table:
    """One row: the distinct ids of a block, the first time of each, and what has to be known of all rows; or an error.

    Ray would wrap what a task raises, and lose the error itself.
    """
    try:
        return _distinct_of(table, settings, name, same)
    except DataError as error:
        return pa.table({"error": [json.dumps([error.message, error.where, error.hint])]})


def _distinct_of(table: pa.Table, settings: EdgeTable, name: str, same: bool) -> pa.Table:
    time, weight = _read(table, settings, name)
    out: dict[str, Any] = {}
    codes = {}
    ids = IdTable()
    for role, column in (("source", settings.source), ("destination", settings.destination)):
        ids = ids if same and role == "destination" else IdTable()
        moment = np.array([UNTIMED]) if time is None else time
        rows, ids.text = ids_of(table[column], f"{name}.{column}", moment, text=ids.text)
        codes[role] = np.empty(len(rows), np.int64)
        for shard in range(SHARDS):
            ids.visit(shard, rows, codes[role])
        order, first = ids.in_order()
        for part, values in (("ids", ids.ids(order)), ("first", pa.array(first))):
            out[f"{role}_{part}"] = pa.LargeListArray.from_arrays(
                pa.array([0, len(order)], pa.int64()), values
            )
    keep = np.ones(len(table), dtype=bool)
    loops = 0
    if same:
        equal = codes["source"] == codes["destination"]
        loops = int(equal.sum())
        keep = ~equal if settings.self_loops == "drop" else keep
    low, high, whole = events_of(
        None if time is None else time[keep], None if weight is None else weight[keep], int(keep.sum())
    )
    # As text: a sum of many magnitudes may be beyond int64.
    stats = {"rows": int(keep.sum()), "loops": loops, "low": low, "high": high}
    out |= {key: pa.array([value], pa.int64()) for key, value in stats.items()}
    out["whole"] = pa.array([None if whole is None else str(whole)], pa.string())
    return pa.table({**out, "error": pa.nulls(1, pa.string())})


def _coded(
    table: pa.Table, *, settings: EdgeTable, name: str, same: bool, known: list[Any], partitions: int
) -> pa.Table:
    """The rows with codes in place of ids, and the partition that each one's destination is in."""
    import ray

    tables = ray.get(known[0])
    time, weight = _read(table, settings, name)
    out: dict[str, Any] = {}
    for ids, role, column in zip(
        tables, ("source", "destination"), (settings.source, settings.destination), strict=True
    ):
        rows, _ = ids_of(table[column], f"{name}.{column}", np.array([UNTIMED]), text=ids.text)
        codes = np.empty(len(rows), np.int64)
        for shard in range(SHARDS):
            ids.find(shard, rows, codes)
        if (codes < 0).any():
            raise DataError("it gave other rows when it was read again", where=name)
        out[role] = codes
    out |= {} if time is None else {"time": time}
    out |= {} if weight is None else {"weight": weight}
    if same and settings.self_loops == "drop":
        keep = out["source"] != out["destination"]
        out = {key: column[keep] for key, column in out.items()}
    return pa.table({**out, _PARTITION: (out["destination"] >> 6) % partitions})


def _sorted(group: pa.Table, *, merge: bool) -> pa.Table:
    """The rows of a partition by destination, source, time and weight; merged where that is asked for."""
    destination = group["destination"].to_numpy()
    time, weight = (
        group[key].to_numpy() if key in group.column_names else None for key in ("time", "weight")
    )
    nodes, row = np.unique(destination, return_inverse=True)
    rows = sorted_rows(row, group["source"].to_numpy(), time, weight, base=0, num_rows=len(nodes))
    one = merged(rows) if merge else None
    indptr, other, first = (
        (rows.indptr, rows.other, rows.time) if one is None else (one.indptr, one.other, one.time)
    )
    out = {"source": other, "destination": np.repeat(nodes, np.diff(indptr))}
    out |= {} if first is None else {"time": first}
    amount = rows.weight if one is None else one.total
    return pa.table({**out, **({} if amount is None else {"weight": amount})})
