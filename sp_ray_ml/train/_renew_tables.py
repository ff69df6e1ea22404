"""`Recommender.renewed` on tables: events and the rows of users and items as positions in their ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data._columns import nanoseconds
from sp_ray_ml.data.preprocessors import FittedFeatures
from sp_ray_ml.data.source import as_source
from sp_ray_ml.errors import DataError
from sp_ray_ml.train._gnn_tables import EventColumns, codes_of, read_events
from sp_ray_ml.train._node_tables import id_column, places_of, read_nodes
from sp_ray_ml.train._renew_nodes import Arrived
from sp_ray_ml.train._renewal import History

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.recommender import Recommender

__all__ = ["arrived"]


def arrived(
    recommender: Recommender, events: Any, nodes: Mapping[str, Any], time: str | None, title: str | None
) -> Arrived:
    """What `renew` is given, of tables.

    Args:
        recommender: Which is to be renewed.
        events: Those since its training, or None.
        nodes: By `user` and `item`, their table or None.
        time: The events' column with their time.
        title: The items' column with the names to show.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: A missing value, an id twice, events of users or items without a row.
    """
    columns = {"user": recommender.user_column, "item": recommender.item_column}
    sealed = {"user": recommender.user_ids, "item": recommender.item_ids}
    timed = recommender.renewal.history.time is not None
    came = None
    if events is not None:
        if timed and time is None:
            raise DataError(
                "the training's events had times", where="renewed", hint="Name the column: time=…"
            )
        came = read_events(as_source(events, "events"), EventColumns(columns["user"], columns["item"], time))
    ids, codes, rows = {}, {}, {}
    for name, column in columns.items():
        table = None
        if nodes[name] is not None:
            more = [title] if title and name == "item" else []
            state = recommender.renewal.preprocessors.get(name)
            features = FittedFeatures.from_json(state).columns if state else []
            table = _rows(nodes[name], column, [*features, *more], f"{name}s")
        ids[name], codes[name] = _codes(came, column, table, sealed[name], name)
        if table is not None:
            rows[name] = table
    titles = rows["item"][title].combine_chunks() if title and "item" in rows else None
    when = None
    if timed:
        when = (
            np.zeros(0, np.int64) if came is None or time is None else nanoseconds(came[time], time, "events")
        )
    return Arrived(ids, History(codes["user"], codes["item"], when), rows, titles)


def _rows(table: Any, column: str, more: list[str], kind: str) -> pa.Table:
    """The rows of a table, by their ids."""
    rows = read_nodes(as_source(table, kind), column, more, kind)
    return rows.take(pc.array_sort_indices(id_column(rows, column)))


def _codes(
    events: pa.Table | None, column: str, table: pa.Table | None, sealed: pa.Array, name: str
) -> tuple[pa.Array, NDArray[np.int64]]:
    """The ids, ascending: of the table, or of the events; and each event's place among them."""
    if table is None:
        if events is None:
            return sealed[:0], np.zeros(0, np.int64)
        ids, [codes] = codes_of([events[column]], column, None)
        return ids, codes
    ids = id_column(table, column)
    if events is None:
        return ids, np.zeros(0, np.int64)
    found, [codes] = codes_of([events[column]], column, None)
    return ids, places_of(found, ids, column, f"{name}s")[codes]
