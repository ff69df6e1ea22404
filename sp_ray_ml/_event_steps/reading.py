"""The step `read`: events and node tables, checked, and their ids turned into codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml._event_steps.catalog import ITEM, USER
from sp_ray_ml.data._columns import moment, nanoseconds
from sp_ray_ml.data.arrow_files import write_arrow
from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.settings import Events, Node, Nodes
    from sp_ray_ml.data.warehouse import Warehouse

__all__ = ["read"]


def read(
    context: StepContext,
    warehouse: Warehouse,
    events: Events,
    nodes: Nodes,
    test: str | None = None,
    since: int | None = None,
) -> dict[str, Any]:
    """Read events and node tables, check them, and turn ids into codes.

    Args:
        context: The step's.
        warehouse: Where the tables are.
        events: Which columns are read.
        nodes: Likewise.
        test: A further table of events: those to test on.
        since: Nanoseconds since 1970: only events from that time on are read, and there may be none.

    Raises:
        DataError: A wrong type, an empty result, a missing value, a doubled or unknown id.
        TableNotFoundError: A table is not there.
        ColumnNotFoundError: A column is not there.
    """
    columns = list(
        dict.fromkeys(name for name in (events.user, events.item, events.time, events.rating) if name)
    )
    where: list[tuple[str, str, Any]] = (
        []
        if events.min_rating is None or events.rating is None
        else [(events.rating, ">=", events.min_rating)]
    )
    if since is not None and events.time:
        kind = warehouse.source(events.table, columns=columns).schema.field(events.time).type
        where.append((events.time, ">=", moment(since, kind)))
    parts = []
    for name, setting in ((events.table, "events.table"), (test, "split.test")):
        if name is None:
            continue
        parts.append(warehouse.source(name, columns=columns, where=where).to_arrow())
        if not parts[-1].num_rows and since is None:
            kept = f" with {events.rating} >= {events.min_rating:g}" if events.min_rating is not None else ""
            raise DataError(
                f"{name} has no rows{kept}",
                where=setting.split(".")[0],
                hint=f"Check {setting} and events.min_rating",
            )
    table, given = _together(parts, events, test)
    keep = np.ones(table.num_rows, dtype=bool)
    codes: dict[str, NDArray[np.int64]] = {}
    summary: dict[str, Any] = {"events": table.num_rows}
    for name, column, node in ((USER, events.user, nodes.user), (ITEM, events.item, nodes.item)):
        rows = None if node is None else _node_table(warehouse, name, node)
        ids, codes[name] = _encode_ids(table[column], rows, name, column, events, node)
        keep &= codes[name] >= 0
        write_arrow(context.output / f"ids-{name}.arrow", pa.table({"id": ids}))
        if rows is not None:
            write_arrow(context.output / f"nodes-{name}.arrow", rows)
        summary[f"{name}s"] = len(ids)
    if not keep.all():
        summary["dropped"] = int((~keep).sum())
        context.note(
            f"{summary['dropped']:,} events name a user or an item without a row in its node table: dropped"
        )
    if not keep.any() and since is None:
        raise DataError("no event names both a known user and a known item", where="events")
    encoded: dict[str, NDArray[Any]] = {name: values[keep] for name, values in codes.items()}
    if events.time:
        encoded["time"] = nanoseconds(table[events.time], f"events.time ({events.time})", "events")[keep]
    if events.rating:
        encoded["rating"] = _ratings(table[events.rating], events.rating)[keep]
    if given is not None:
        encoded["given"] = given[keep]
    write_arrow(context.output / "events.arrow", pa.table(encoded))
    return summary


def _together(
    parts: list[pa.Table], events: Events, test: str | None
) -> tuple[pa.Table, NDArray[np.bool_] | None]:
    """The events of both tables, and which of them are those to test on."""
    if test is None:
        return parts[0], None
    parts = [
        pa.table({name: _plain(part[name]) for name in part.column_names}) for part in parts
    ]  # two dictionaries would not fit together
    try:
        table = pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise DataError(
            f"the columns of {test} have other types than those of {events.table}: {error}",
            where="split.test",
            hint="Cast them to one type, for instance with a query in place of the table",
        ) from error
    return table, np.arange(table.num_rows) >= parts[0].num_rows


def _node_table(warehouse: Warehouse, name: str, node: Node) -> pa.Table:
    where = f"nodes.{name}"
    wanted = [node.id, node.title, *(column for feature in node.features for column in feature.columns)]
    columns = list(dict.fromkeys(column for column in wanted if column))
    table = warehouse.source(node.table, columns=columns).to_arrow()
    if not table.num_rows:
        raise DataError(f"{node.table} has no rows", where=where)
    ids = _plain(table[node.id])
    table = table.set_column(table.column_names.index(node.id), node.id, ids)
    if ids.null_count:
        raise DataError(f"{ids.null_count} rows of {node.table} have no id", where=f"{where}.id ({node.id})")
    counts = pc.value_counts(ids.combine_chunks())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(doubled):
        shown = ", ".join(str(value) for value in doubled[:3].to_pylist())
        raise DataError(
            f"{len(doubled)} ids of {node.table} occur more than once, such as {shown}",
            where=f"{where}.id ({node.id})",
            hint="Keep one row an id, for instance with a query in place of the table",
        )
    return table.take(pc.array_sort_indices(ids.combine_chunks()))


def _plain(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids as such, where they are stored as a dictionary (as pandas' categories are)."""
    return ids.cast(ids.type.value_type) if pa.types.is_dictionary(ids.type) else ids


def _encode_ids(
    column: pa.ChunkedArray,
    rows: pa.Table | None,
    name: str,
    column_name: str,
    events: Events,
    node: Node | None,
) -> tuple[pa.Array, NDArray[np.int64]]:
    """The ids of a node type, ascending, and each event's position in them; -1 for one to be dropped."""
    where = f"events.{name} ({column_name})"
    column = _plain(column)
    if not (
        pa.types.is_integer(column.type)
        or pa.types.is_string(column.type)
        or pa.types.is_large_string(column.type)
    ):
        raise DataError(f"ids must be whole numbers or text, this column is {column.type}", where=where)
    if column.null_count:
        raise DataError(f"{column.null_count} of {len(column)} events have no {name}", where=where)
    if rows is None or node is None:
        ids = pc.unique(column)
        ids = ids.take(pc.array_sort_indices(ids))
        return ids, pc.index_in(column, ids).to_numpy().astype(np.int64)
    ids = rows[node.id].combine_chunks()
    numbers = pa.types.is_integer(column.type)
    if pa.types.is_integer(ids.type) != numbers:
        raise DataError(
            f"{column_name} is {column.type}, but {node.table}.{node.id} is {ids.type}: ids must be of one type",
            where=where,
        )
    # An id that is too large for the other table's type is unknown, no error.
    wide = ids.type
    if numbers and column.type != ids.type:
        wide = pa.decimal128(20) if pa.uint64() in {column.type, ids.type} else pa.int64()
    found = pc.index_in(column.cast(wide), ids.cast(wide))
    codes = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    if found.null_count and events.unknown == "error":
        unknown = pc.unique(column.filter(pc.is_null(found)))
        shown = ", ".join(str(value) for value in unknown[:3].to_pylist())
        raise DataError(
            f"{found.null_count} events name {len(unknown)} {name}s that {node.table} does not have, such as {shown}",
            where=where,
            hint="Add them to the table, or set events.unknown: drop",
        )
    return ids, codes


def _ratings(column: pa.ChunkedArray, name: str) -> NDArray[np.float32]:
    where = f"events.rating ({name})"
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(f"ratings must be numbers, this column is {kind}", where=where)
    values = column.cast(pa.float64()).cast(pa.float32()).to_numpy()
    if missing := int(np.isnan(values).sum()):
        raise DataError(f"{missing} of {len(values)} events have no rating", where=where)
    return values  # type: ignore[no-any-return]
