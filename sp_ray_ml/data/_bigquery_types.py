"""Types of BigQuery and of Arrow, both ways: what a column is stored as, what it is read as, what cannot be held.

BigQuery has one integer and one float type. What a column was before (`int8`, `float`, a vector of fixed length) is
kept in the table's own note (`_bigquery_note.py`), so that it is read back as it was written.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.errors import DataError

__all__ = [
    "check_columns",
    "check_lists",
    "column_of",
    "has_kinds",
    "kept",
    "kind_of",
    "read_schema",
    "stored",
]

_SQL_TYPE = b"ARROW:extension:name"
"""Where the Storage Read API, too, says that text is JSON or a place on earth."""

_READ = {
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "INTEGER": pa.int64(),
    "INT64": pa.int64(),
    "FLOAT": pa.float64(),
    "FLOAT64": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "BOOL": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
    "DATETIME": pa.timestamp("us"),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "GEOGRAPHY": pa.string(),
    "JSON": pa.string(),
    "INTERVAL": pa.month_day_nano_interval(),
}
_NAMED = {"JSON": b"google:sqlType:json", "GEOGRAPHY": b"google:sqlType:geography"}

# Letters, digits, connectors, dashes, marks of any language, and the signs that flexible column names have.
_COLUMN = re.compile(r"^[\w\-\u2010-\u2015&%=+:'<>#| ]{1,300}$")
_NESTED = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,299}$")
_RESERVED = (
    "_TABLE_",
    "_FILE_",
    "_PARTITION",
    "_ROW_TIMESTAMP",
    "__ROOT__",
    "_COLIDENTIFIER",
    "_CHANGE_",
    "_FIELD_",
)


# --- from BigQuery ----------------------------------------------------------------------------------------------


def read_schema(fields: list[dict[str, Any]], where: str) -> pa.Schema:
    """The Arrow schema of a table's or a query's fields, as the REST API gives them.

    Raises:
        DataError: A type is unknown.
    """
    return pa.schema([_read_field(field, where) for field in fields])


def _read_field(field: dict[str, Any], where: str) -> pa.Field:
    name, kind = field["name"], str(field["type"]).upper()
    if kind in {"RECORD", "STRUCT"}:
        arrow: pa.DataType = pa.struct([_read_field(inner, where) for inner in field.get("fields", [])])
    elif kind.startswith("RANGE"):
        element = (field.get("rangeElementType") or {}).get("type") or kind[len("RANGE") :].strip("<>")
        arrow = pa.struct(
            [pa.field("start", _READ[element.upper()]), pa.field("end", _READ[element.upper()])]
        )
    elif kind in _READ:
        arrow = _READ[kind]
    else:
        raise DataError(f"column {name!r} is of BigQuery's type {kind}, which is not known here", where=where)
    if str(field.get("mode", "")).upper() == "REPEATED":
        arrow = pa.list_(arrow)
    return pa.field(name, arrow, metadata={_SQL_TYPE: _NAMED[kind]} if kind in _NAMED else None)


# --- to BigQuery ------------------------------------------------------------------------------------------------


def kind_of(field: pa.Field) -> str | None:
    """`JSON` or `GEOGRAPHY`, if text (or that of a list's items) is that; None for a plain column."""
    if str(field.type) in {"extension<arrow.json>", "json"}:
        return "JSON"
    name = (field.metadata or {}).get(_SQL_TYPE)
    return next((kind for kind, said in _NAMED.items() if said == name), None)


def has_kinds(field: pa.Field) -> bool:
    """Whether there is text of such a kind in a stored column, at any depth."""
    if kind_of(field):
        return True
    kind = field.type.value_type if pa.types.is_list(field.type) else field.type
    return pa.types.is_struct(kind) and any(map(has_kinds, kind))


def _named(field: pa.Field, kind: pa.DataType) -> pa.Field:
    """A field of the same name and another type that is of the same kind."""
    found = kind_of(field)
    return pa.field(field.name, kind, metadata={_SQL_TYPE: _NAMED[found]} if found else None)


def stored(schema: pa.Schema, where: str) -> pa.Schema:
    """The schema that rows are cast to before they are sent: BigQuery's own types, nothing lost.

    Raises:
        DataError: BigQuery has no type that holds a column; the hint says what to make of it.
    """
    return pa.schema([_named(field, _stored(field.type, field.name, where)) for field in schema])


def _stored(kind: pa.DataType, name: str, where: str, *, inside: bool = False) -> pa.DataType:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _stored(kind.storage_type, name, where, inside=inside)
    if types.is_dictionary(kind):
        return _stored(kind.value_type, name, where, inside=inside)
    if types.is_boolean(kind) or types.is_date32(kind):
        return kind
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64()
    if (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    ):
        return pa.string()
    if (
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    ):
        return pa.binary()
    if types.is_date64(kind):
        return pa.date32()
    if types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if types.is_time(kind):
        return pa.time64("us")
    if types.is_decimal(kind):
        whole = kind.precision - kind.scale
        if 0 <= kind.scale <= 9 and whole <= 29:
            return _READ["NUMERIC"]
        if 0 <= kind.scale <= 38 and whole <= 38:
            return _READ["BIGNUMERIC"]
        raise DataError(
            f"column {name!r} of type {kind} has more digits than BigQuery's BIGNUMERIC (38 before and after the point)",
            where=where,
            hint="Round it, or write it as text",
        )
    if types.is_map(kind):
        kind = pa.list_(pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)]))
    if (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
        or types.is_list_view(kind)
    ):
        if inside:
            raise DataError(
                f"column {name!r} has lists of lists, which BigQuery cannot hold",
                where=where,
                hint="Put the inner lists into a struct with one field",
            )
        return pa.list_(_stored(kind.value_type, name, where, inside=True))
    if types.is_struct(kind) and kind.num_fields:
        for inner in kind:
            if not _NESTED.match(inner.name):
                raise DataError(
                    f"field {inner.name!r} of column {name!r} is no name for BigQuery",
                    where=where,
                    hint="Inside a struct take letters of ASCII, digits and underscores",
                )
        return pa.struct([_named(inner, _stored(inner.type, name, where)) for inner in kind])
    hint = (
        "Write it as an int64 of microseconds"
        if types.is_duration(kind)
        else "Make it one of numbers, text, times, lists or structs"
    )
    raise DataError(
        f"column {name!r} is of type {kind}, which BigQuery does not have", where=where, hint=hint
    )


def kept(schema: pa.Schema) -> pa.Schema:
    """The columns that were of a narrower type than BigQuery stores, in the type that they are read back as."""
    fields = []
    for field in schema:
        kind, wide = _kept(field.type), _stored(field.type, field.name, "")
        if kind != wide or has_kinds(_named(field, wide)):
            fields.append(_named(field, kind))
    return pa.schema(fields)


def _kept(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _kept(kind.storage_type)
    if types.is_dictionary(kind):
        return _kept(kind.value_type)
    if types.is_float16(kind):
        return pa.float32()
    if (
        types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return kind
    if types.is_fixed_size_list(kind):
        return pa.list_(_kept(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind):
        return pa.list_(_kept(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([_named(inner, _kept(inner.type)) for inner in kind])
    return _stored(kind, "", "")


def column_of(field: pa.Field) -> dict[str, Any]:
    """A stored field as the REST API takes it."""
    return _column(field.name, field.type, kind_of(field))


_WRITE = {
    pa.string(): "STRING",
    pa.binary(): "BYTES",
    pa.int64(): "INT64",
    pa.float64(): "FLOAT64",
    pa.bool_(): "BOOL",
    pa.timestamp("us", "UTC"): "TIMESTAMP",
    pa.timestamp("us"): "DATETIME",
    pa.date32(): "DATE",
    pa.time64("us"): "TIME",
    pa.decimal128(38, 9): "NUMERIC",
    pa.decimal256(76, 38): "BIGNUMERIC",
}


def _column(name: str, kind: pa.DataType, named: str | None = None) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {**_column(name, kind.value_type, named), "mode": "REPEATED"}
    column: dict[str, Any] = {"name": name, "mode": "NULLABLE"}
    if pa.types.is_struct(kind):
        return {**column, "type": "RECORD", "fields": [_column(f.name, f.type, kind_of(f)) for f in kind]}
    return {**column, "type": named or _WRITE[kind]}


def check_columns(schema: pa.Schema, where: str) -> None:
    """Check that BigQuery can have columns of these names.

    Raises:
        DataError: A name has signs that it refuses or begins as its own do, or two differ only in case.
    """
    seen: dict[str, str] = {}
    for name in schema.names:
        if not _COLUMN.match(name):
            raise DataError(
                f"{name!r} cannot be a column's name in BigQuery",
                where=where,
                hint="Take letters, digits, spaces and _ - & % = + : ' < > # |, at most 300 of them",
            )
        if name.upper().startswith(_RESERVED):
            raise DataError(
                f"BigQuery keeps names like {name!r} for itself", where=where, hint="Rename the column"
            )
        if (other := seen.setdefault(name.lower(), name)) is not name:
            raise DataError(
                f"columns {other!r} and {name!r} differ only in case, which BigQuery does not tell apart",
                where=where,
            )


def check_lists(batch: pa.RecordBatch, where: str) -> None:
    """Check that no list is null or holds one: BigQuery has empty arrays in their place, or refuses them.

    Raises:
        DataError: There is one.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        _check_lists(column, name, where)


def _check_lists(values: pa.Array, name: str, where: str) -> None:
    if pa.types.is_struct(values.type):
        present = values.filter(values.is_valid()) if values.null_count else values
        for index in range(values.type.num_fields):
            _check_lists(present.field(index), name, where)
    elif pa.types.is_list(values.type):
        inner = pc.list_flatten(values)
        if values.null_count or inner.null_count:
            what = "is null" if values.null_count else "has a null in it"
            raise DataError(
                f"a list in column {name!r} {what}, which BigQuery's arrays cannot be",
                where=where,
                hint="Leave those rows out, or put empty lists or other values there",
            )
        _check_lists(inner, name, where)
