"""Tables of users or items: a row for each id, and which row is that of an id that events name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data._columns import plain
from sp_ray_ml.data.source import require_columns
from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.data.source import Source

__all__ = ["id_column", "places_of", "read_nodes"]


def read_nodes(source: Source, column: str, more: Sequence[str], kind: str) -> pa.Table:
    """The rows of a table.

    Args:
        source: The table.
        column: Names the rows.
        more: Further columns that are read.
        kind: What messages call it: `users` or `items`.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: A row has no id, or one that another has.
    """
    wanted = list(dict.fromkeys([column, *more]))
    rows = source.select(require_columns(source.schema, wanted, kind)).to_arrow()
    ids = id_column(rows, column)
    if ids.null_count:
        raise DataError(f"{ids.null_count} of {len(ids)} rows have no {column}", where=kind)
    if doubled := len(ids) - len(pc.unique(ids)):
        raise DataError(f"{doubled} rows are of an id that is there already", where=f"{kind}.{column}")
    return rows


def id_column(rows: pa.Table, column: str) -> pa.Array:
    """The ids as one array of what they stand for."""
    return plain(rows[column].combine_chunks())


def places_of(wanted: pa.Array, ids: pa.Array, column: str, kind: str) -> NDArray[np.int64]:
    """The rows of some ids, int64 [wanted].

    Args:
        wanted: Those that events name.
        ids: Those of the rows.
        column: Names the rows.
        kind: What messages call the table.

    Raises:
        DataError: The ids are of another type, or one has no row.
    """
    try:
        place = pc.index_in(wanted, ids.cast(wanted.type))
    except pa.ArrowInvalid as error:
        raise DataError(f"the ids are not all {wanted.type}: {error}", where=f"{kind}.{column}") from None
    if place.null_count:
        unknown = wanted.filter(pc.is_null(place))
        shown = ", ".join(str(value) for value in unknown[:3].to_pylist())
        raise DataError(
            f"the events name {len(unknown)} {kind} without a row, such as {shown}",
            where=f"{kind}.{column}",
            hint="Add their rows, or leave their events out",
        )
    found: NDArray[np.int64] = place.to_numpy(zero_copy_only=False).astype(np.int64)
    return found
