"""Schemas of written tables: what a column is stored as, and whether appended rows fit."""

from __future__ import annotations

import pyarrow as pa

from sp_ray_ml.config import near_match
from sp_ray_ml.errors import DataError

__all__ = [
    "cast_batch",
    "check_append",
    "check_partition_column",
    "partition_values",
    "plain",
    "rows_per_group",
]

_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 262_144


def plain(schema: pa.Schema) -> pa.Schema:
    """The schema with encodings undone: dictionaries and the large and view layouts of Arrow are no types of data."""
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_large_list(kind) or pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_float16(kind):
        return pa.float32()
    return kind


def check_append(have: pa.Schema, new: pa.Schema, where: str) -> None:
    """Check that rows of schema `new` fit a table of schema `have`; the order of columns does not matter.

    Raises:
        DataError: A column is missing, unknown or of another type.
    """
    have, new = plain(have), plain(new)
    hint = "Nothing was written; give the table's own columns, or use mode replace"
    for field in new:
        if field.name not in have.names:
            raise DataError(
                f"appended rows have a column {field.name!r} that the table has not"
                f"{near_match(field.name, have.names)}",
                where=where,
                hint=hint,
            )
    for field in have:
        if field.name not in new.names:
            raise DataError(f"appended rows have no column {field.name!r}", where=where, hint=hint)
        got = new.field(field.name).type
        if not got.equals(field.type) and not pa.types.is_null(got):
            raise DataError(
                f"column {field.name!r} of the appended rows is {got}, the table's is {field.type}",
                where=where,
                hint=hint,
            )


def check_partition_column(field: pa.Field, where: str) -> None:
    """Check that a column can be partitioned by: its values compare exactly and can be named.

    Raises:
        DataError: It is of another type than integers, booleans, text, days or times.
    """
    kind = _plain(field.type)
    if not any(
        of(kind)
        for of in (
            pa.types.is_integer,
            pa.types.is_boolean,
            pa.types.is_string,
            pa.types.is_date,
            pa.types.is_timestamp,
        )
    ):
        raise DataError(
            f"a table cannot be partitioned by column {field.name!r} of type {field.type}",
            where=where,
            hint="Take one of integers, booleans, text, days or times",
        )


def partition_values(batch: pa.RecordBatch, column: str, where: str) -> pa.Array:
    """The distinct values of the column that a table is partitioned by.

    Raises:
        DataError: There is a null among them.
    """
    values = batch.column(column)
    if values.null_count:
        raise DataError(
            f"column {column!r} has nulls, which belong to no partition",
            where=where,
            hint="Leave those rows out, or give them a value of their own",
        )
    return values.unique()


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> pa.RecordBatch:
    """The batch with the columns, order and types of `schema`.

    Raises:
        DataError: A value does not fit its type.
    """
    columns = []
    for field in schema:
        column = batch.column(field.name)
        if not column.type.equals(field.type):
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"column {field.name!r} of type {column.type} cannot be stored as {field.type}: {error}",
                    where=where,
                ) from error
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def rows_per_group(schema: pa.Schema) -> int:
    """How many rows are written together: bounded in bytes too, for tables with wide embeddings."""
    width = sum(_width(field.type) for field in schema)
    return max(1_024, min(_GROUP_ROWS, _GROUP_BYTES // max(width, 1)))


def _width(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * _width(kind.value_type)
    return 16
