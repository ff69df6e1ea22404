"""The files of one node type: original ids, first events' times, features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml.data._columns import is_list, number_unit, numbers, plain, plain_type
from sp_ray_ml.data.arrow_files import write_arrow
from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._assemble import Work
from sp_ray_ml.graph._files import HEADER_BYTES, array_header
from sp_ray_ml.graph._id_table import IdTable, places
from sp_ray_ml.graph._ingest import ahead, encode
from sp_ray_ml.graph._rows import NEVER
from sp_ray_ml.graph.graph import node_type
from sp_ray_ml.graph.settings import NodeTable
from sp_ray_ml.storage import storage_errors

__all__ = ["write_nodes"]


def write_nodes(
    work: Work, number: int, name: str, table: IdTable, settings: NodeTable | None, source: Source | None
) -> tuple[NDArray[Any], NDArray[np.int64], dict[str, Any]]:
    """Bring the nodes of one type into their order and write what there is of them.

    Args:
        work: Where and how.
        number: Of the node type.
        name: The node type.
        table: All its ids.
        settings: Of its table of nodes, if there is one.
        source: That table.

    Returns:
        The place of each code, the codes in their order, and what the manifest says.

    Raises:
        DataError: Features are missing or no numbers.
    """
    codes, first = table.in_order()
    place = places(codes, table.end, node_type(len(codes)))
    file = work.files.folder / f"ids-{number}.arrow"
    with storage_errors(file):
        write_arrow(file, pa.table({"id": table.ids(codes)}))
    work.files.add(file)
    work.files.save(f"first-{number}", first)
    with_events = int(np.searchsorted(first, NEVER))
    if settings is not None and settings.features:
        assert source is not None
        _write_features(work, number, table, place, with_events, settings, source)
    return (
        place,
        codes,
        {
            "type": name,
            "count": len(codes),
            "with_events": with_events,
            "ids": True,
            "features": settings is not None and bool(settings.features),
        },
    )


def _write_features(
    work: Work,
    number: int,
    table: IdTable,
    place: NDArray[Any],
    with_events: int,
    settings: NodeTable,
    source: Source,
) -> None:
    count = len(table)
    file = work.files.folder / f"features-{number}.npy"
    width: int | None = None
    missing = np.ones(count, dtype=bool)
    for codes, matrix in _feature_rows(work, table, settings, source):
        if width is None:
            width = matrix.shape[1]
            _make(file, count, width)
        elif matrix.shape[1] != width:
            raise DataError(f"rows have {width} and {matrix.shape[1]} features", where=source.name)
        rows = place[codes]
        # Mapped anew each time: what was written does not stay this process's memory.
        np.memmap(file, np.float32, "r+", HEADER_BYTES, (count, width))[rows] = matrix
        missing[rows] = False
    if width is None:
        _make(file, count, 0)
    lacking = int(missing[:with_events].sum())
    if lacking and settings.missing == "refuse":
        example = table.ids(np.flatnonzero(place == np.flatnonzero(missing)[0])[:1])[0].as_py()
        raise DataError(
            f"{lacking:,} nodes have edges and no row here, {example!r} for one",
            where=f"{source.name}.{settings.id}",
            hint="Add their rows, or give them features of zeros: missing: zero",
        )
    work.files.add(file)


def _feature_rows(
    work: Work, table: IdTable, settings: NodeTable, source: Source
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    names = list(dict.fromkeys([settings.id, *settings.features]))
    for batch in ahead(source.select(names).blocks(work.limits.chunk_rows)):
        id_column = pa.chunked_array([batch.column(settings.id)])
        where = f"{source.name}.{settings.id}"
        [codes] = encode(work.pool, [(table, id_column, where)], np.array([NEVER]), add=False)
        if (codes < 0).any():
            raise DataError("it gave other rows when it was read again", where=source.name)
        parts = [_numbers(batch.column(name), f"{source.name}.{name}") for name in settings.features]
        yield codes, np.concatenate(parts, axis=1, dtype=np.float32)


def _numbers(column: pa.Array, where: str) -> NDArray[Any]:
    """A column of numbers, or of lists of one length, as [rows, width]."""
    values, rows = plain(column), len(column)
    if lists := is_list(values.type):
        lengths = pc.list_value_length(values)
        if values.null_count or len(pc.unique(lengths)) != 1:
            raise DataError("lists of features must all have one length, and none be missing", where=where)
        values = plain(values.flatten())
    if number_unit(values.type) != "number":
        raise DataError(
            f"features must be numbers or lists of them, these are {plain_type(values.type)}",
            where=where,
            hint="Make numbers of them with fit_features of sp_ray_ml.data",
        )
    if values.null_count:
        raise DataError(f"{values.null_count:,} features are missing", where=where)
    found = numbers(values)
    return found.reshape(rows, -1) if lists else found[:, None]


def _make(file: Path, rows: int, width: int) -> None:
    """An array of zeros, which take no room until they are written over."""
    with storage_errors(file), file.open("wb") as stream:
        stream.write(array_header(np.dtype(np.float32), (rows, width)))
        stream.truncate(HEADER_BYTES + 4 * rows * width)
