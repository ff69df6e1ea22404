"""Arrow's types as Iceberg keeps them: small and unsigned integers in the next wider one, vectors as lists."""

from __future__ import annotations

import base64
from typing import Any

import pyarrow as pa

from sp_ray_ml.data._schema import cast_batch, plain
from sp_ray_ml.errors import DataError

__all__ = ["SCHEMA", "arrow_schema", "read_schema", "stored_batch", "stored_schema"]

SCHEMA = "sp_ray_ml.schema"
"""The property of a table that says in which types it was written."""


def stored_schema(schema: pa.Schema, where: str) -> pa.Schema:
    """The schema of the rows that are written.

    Raises:
        DataError: Iceberg has nothing for a column's type.
    """
    return pa.schema([pa.field(field.name, _stored(field.type, field.name, where)) for field in schema])


def _stored(kind: pa.DataType, name: str, where: str) -> pa.DataType:
    of = pa.types
    if of.is_int8(kind) or of.is_int16(kind) or of.is_uint8(kind) or of.is_uint16(kind):
        return pa.int32()
    if of.is_uint32(kind):
        return pa.int64()
    if of.is_struct(kind):
        return pa.struct([pa.field(f.name, _stored(f.type, name, where)) for f in kind])
    if of.is_list(kind) or of.is_fixed_size_list(kind):
        return pa.list_(_stored(kind.value_type, name, where))
    if of.is_map(kind):
        return pa.map_(_stored(kind.key_type, name, where), _stored(kind.item_type, name, where))
    if (
        of.is_boolean(kind)
        or of.is_int32(kind)
        or of.is_int64(kind)
        or of.is_float32(kind)
        or of.is_float64(kind)
        or of.is_string(kind)
        or of.is_binary(kind)
        or of.is_fixed_size_binary(kind)
        or of.is_date32(kind)
        or (of.is_time64(kind) and kind.unit == "us")
        or (of.is_timestamp(kind) and kind.unit == "us")
        or of.is_decimal128(kind)
    ):
        return kind
    raise DataError(
        f"column {name!r} of type {kind} cannot be kept in Iceberg",
        where=where,
        hint="Cast it, for example to int64, double or string",
    )


def stored_batch(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    """The rows as they are written.

    Raises:
        DataError: A list of structs is null: PyIceberg 0.12 would write an empty one.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if _has_lost_nulls(column):
            raise DataError(
                f"column {name!r} has nulls among lists of structs, which PyIceberg writes as empty lists",
                where=where,
                hint="Leave those rows out, or make them empty lists",
            )
    return cast_batch(batch, stored_schema(batch.schema, where), where)


def _has_lost_nulls(column: pa.Array) -> bool:
    kind = column.type
    if pa.types.is_struct(kind):
        return any(_has_lost_nulls(column.field(i)) for i in range(kind.num_fields))
    if pa.types.is_list(kind):
        return bool(pa.types.is_struct(kind.value_type) and column.null_count) or _has_lost_nulls(
            column.values
        )
    return False


def read_schema(schema: pa.Schema) -> pa.Schema:
    """The types that a reader gets back: moments are kept in microseconds, those with a zone in UTC."""

    def back(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_timestamp(kind):
            return pa.timestamp("us", None if kind.tz is None else "UTC")
        return pa.date32() if pa.types.is_date64(kind) else kind

    return pa.schema([pa.field(field.name, back(field.type)) for field in schema])


def arrow_schema(table: Any) -> pa.Schema:
    """A table's columns, in the types that were written where it was written here and is still so."""
    own = _bare(table.schema().as_arrow())
    said = table.properties.get(SCHEMA)
    if said is None:
        return own
    wanted = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(said)))
    same = _bare(stored_schema(wanted, ""))
    return wanted if same.equals(own) else own


def _bare(schema: pa.Schema) -> pa.Schema:
    """The schema with the items of lists called the same, and without metadata: PyIceberg names and numbers them."""

    def bare(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(f.name, bare(f.type)) for f in kind])
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return pa.list_(bare(kind.value_type))
        return plain(pa.schema([("x", kind)])).field(0).type

    return pa.schema([pa.field(field.name, bare(field.type)) for field in schema])
