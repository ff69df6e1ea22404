"""Columns as preprocessors read them: Arrow types checked, values as numbers, categories or tokens."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data.source import require_columns
from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Column"]

_T = pa.types
LARGEST_SECONDS = 32_503_680_000  # the year 3000: what is larger was not in seconds
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_VALUE_TYPES = {
    str(kind): kind
    for kind in (pa.string(), pa.int64(), pa.uint64(), pa.float64(), pa.bool_(), pa.date32(), pa.null())
}


@dataclass(frozen=True)
class Column:
    """A column that a preprocessor reads.

    Attributes:
        name: Its name.
        type: Its Arrow type in the fit.
        where: What messages call it.
    """

    name: str
    type: pa.DataType = None
    where: str = ""

    def error(self, message: str, hint: str | None = None) -> DataError:
        """A `DataError` about this column."""
        return DataError(message, where=self.where or f"column {self.name}", hint=hint)


def column_type(schema: pa.Schema, name: str, where: str) -> pa.DataType:
    """Type of a column that must be there, once.

    Raises:
        ColumnNotFoundError: It is not there.
        DataError: It is there twice.
    """
    require_columns(schema, [name], where)
    places = schema.get_all_field_indices(name)
    if len(places) > 1:
        raise DataError(f"{len(places)} columns are named {name!r}", where=where, hint="Rename all but one")
    return schema.field(places[0]).type


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values, however they are encoded."""
    if _T.is_dictionary(kind):
        return plain_type(kind.value_type)
    if _T.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    return kind


def with_inner(kind: pa.DataType, of: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A nested type with other types in it; one that is not nested as it is."""
    if _T.is_struct(kind):
        return pa.struct([field.with_type(of(field.type)) for field in kind])
    if _T.is_map(kind):
        return pa.map_(of(kind.key_type), of(kind.item_type))
    if _T.is_fixed_size_list(kind):
        return pa.list_(of(kind.value_type), kind.list_size)
    if _T.is_large_list(kind):
        return pa.large_list(of(kind.value_type))
    return pa.list_(of(kind.value_type)) if _T.is_list(kind) else kind


def plain(values: pa.Array) -> pa.Array:
    """The values themselves, not dictionary or run-end encoded."""
    if _T.is_dictionary(values.type):
        return plain(values.dictionary_decode())
    return plain(pc.run_end_decode(values)) if _T.is_run_end_encoded(values.type) else values


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are strings."""
    return bool(_T.is_string(kind) or _T.is_large_string(kind) or _T.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    return bool(_T.is_list(kind) or _T.is_large_list(kind) or _T.is_fixed_size_list(kind))


def _refuse(column: Column, wanted: str) -> DataError:
    kind = plain_type(column.type)
    if is_text(kind):
        hint = (
            "Text goes to kind: categorical, multi_hot or hash_text; numbers in text need a cast in the query"
        )
    elif is_list(kind):
        hint = "A list of text or whole numbers goes to kind: multi_hot"
    elif number_unit(kind):
        hint = "Numbers, dates and times go to kind: standardize, min_max or bucketize"
        hint += "" if _T.is_timestamp(kind) else "; whole numbers, booleans and dates also to categorical"
    else:
        hint = "Cast it in the query, or leave the column out"
    return column.error(f"type {column.type}, expected {wanted}", hint)


# --- times ------------------------------------------------------------------------------------------------------


def nanoseconds(column: pa.ChunkedArray, where: str, rows: str = "rows") -> NDArray[np.int64]:
    """Times as nanoseconds since 1970.

    Raises:
        DataError: A time is missing or out of range, or the type is none of a time.
    """
    if column.null_count:
        raise DataError(f"{column.null_count} of {len(column)} {rows} have no time", where=where)
    kind = column.type
    if pa.types.is_integer(kind):
        seconds = column.cast(pa.int64()).to_numpy()
        if len(seconds) and int(np.abs(seconds).max()) > LARGEST_SECONDS:
            raise DataError(
                "whole numbers are read as seconds since 1970, and these lie beyond the year 3000: milliseconds?",
                where=where,
                hint="Make it a timestamp, for instance with a query in place of the table",
            )
        return seconds * 1_000_000_000  # type: ignore[no-any-return]
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise DataError(
            f"times must be timestamps, dates or whole seconds since 1970, this column is {kind}", where=where
        )
    try:
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return column.cast(pa.timestamp("ns", zone)).cast(pa.int64()).to_numpy()  # type: ignore[no-any-return]
    except pa.ArrowInvalid as error:
        raise DataError(f"a time is out of range (1677 to 2262): {error}", where=where) from None


# --- numbers ----------------------------------------------------------------------------------------------------


def moment(time: int, kind: pa.DataType) -> int | dt.date:
    """A time in nanoseconds since 1970 as a column of this type has it, or the last one before that it can have.

    Args:
        time: The time.
        kind: A type that `nanoseconds` takes.
    """
    if pa.types.is_integer(kind):
        return time // 1_000_000_000
    days = pa.types.is_date(kind)
    unit = 86_400_000_000 if days else {"s": 1_000_000, "ms": 1_000}.get(kind.unit, 1)
    micros = time // 1_000 // unit * unit
    found = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=micros)
    return found.date() if days else found


def number_unit(kind: pa.DataType) -> str:
    """What a number of this type counts: `number`, `days`, `seconds`, `any` (only nulls); empty for no number."""
    kind = plain_type(kind)
    if _T.is_integer(kind) or _T.is_floating(kind) or _T.is_boolean(kind) or _T.is_decimal(kind):
        return "number"
    if _T.is_date(kind):
        return "days"
    if _T.is_timestamp(kind) or _T.is_duration(kind):
        return "seconds"
    return "any" if _T.is_null(kind) else ""


def check_number(column: Column, unit: str = "any") -> None:
    """Refuse a column that is not of numbers, or whose numbers count something else than `unit`.

    Raises:
        DataError: It is.
    """
    own = number_unit(column.type)
    if not own:
        raise _refuse(column, "numbers, booleans, dates or timestamps")
    if own != unit and "any" not in (own, unit):
        raise column.error(
            f"type {column.type} counts {own}, the preprocessor was fitted on {unit}",
            "Cast the column to the type it had in the fit",
        )


def numbers(values: pa.Array) -> NDArray[np.float64]:
    """Float64 [rows], NaN where a value is missing.

    Booleans are 0 and 1, dates days since 1970, timestamps seconds since 1970 in UTC (those without a zone are
    taken as UTC), durations seconds. Whole numbers beyond 2^53 are rounded.
    """
    values = plain(values)
    kind = values.type
    divisor = 1
    if _T.is_timestamp(kind) or _T.is_duration(kind):
        divisor = _PER_SECOND[kind.unit]
        values = values.view(pa.int64())
    elif _T.is_date64(kind):
        values = values.cast(pa.date32()).view(pa.int32())
    elif _T.is_date32(kind):
        values = values.view(pa.int32())
    elif _T.is_float16(kind):
        values = values.cast(pa.float32())
    result = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(result / divisor if divisor > 1 else result, np.float64)


def bad_numbers(column: Column, rows: int, missing: int, infinite: int) -> DataError:
    """The error for values that cannot be used."""
    if infinite:
        return column.error(
            f"{infinite:,} of {rows:,} rows are infinite", "Replace infinite values by null in the query"
        )
    return column.error(
        f"{missing:,} of {rows:,} rows have no value (null or NaN)",
        "Set missing: mean, zero or a number (for bucketize: bucket), or fill them in the query",
    )


def count_bad(values: pa.ChunkedArray) -> tuple[int, int]:
    """How many values are missing and how many infinite."""
    missing = infinite = 0
    for chunk in values.chunks:
        found = numbers(chunk)
        missing += int(np.isnan(found).sum())
        infinite += int(np.isinf(found).sum())
    return missing, infinite


# --- categories -------------------------------------------------------------------------------------------------


def value_type(name: str) -> pa.DataType:
    """The Arrow type of a state's values by its name.

    Raises:
        KeyError: No state has values of this type.
    """
    return _VALUE_TYPES[name]


def category_type(column: Column) -> pa.DataType:
    """The one Arrow type that categories of this column are kept in.

    Raises:
        DataError: The column's values are no categories.
    """
    kind = plain_type(column.type)
    if is_text(kind):
        return pa.string()
    if _T.is_integer(kind):
        return pa.uint64() if _T.is_uint64(kind) else pa.int64()
    if _T.is_floating(kind) or _T.is_decimal(kind):
        return pa.float64()
    if _T.is_date(kind):
        return pa.date32()
    if _T.is_boolean(kind) or _T.is_null(kind):
        return kind
    raise _refuse(column, "text, whole numbers, booleans or dates")


def _is_numeric(kind: pa.DataType) -> bool:
    return bool(_T.is_integer(kind) or _T.is_float64(kind))


def to_categories(values: pa.Array, wanted: pa.DataType, column: Column) -> pa.Array:
    """Values in the type that categories are kept in, null where missing.

    Where numbers come in another type than `wanted` (whole numbers with gaps are floats in pandas) they are
    float64: the caller compares as such.

    Raises:
        DataError: The values are of another sort than `wanted`, or infinite.
    """
    values = plain(values)
    own = category_type(Column(column.name, values.type, column.where))
    if _T.is_null(wanted) or _T.is_null(own):
        return pa.nulls(len(values), wanted)
    if own != wanted and not (_is_numeric(own) and _is_numeric(wanted)):
        raise column.error(
            f"type {values.type}, the preprocessor was fitted on {wanted}",
            "Cast the column to the type it had in the fit",
        )
    if own == wanted and not _T.is_float64(wanted):
        return values.cast(wanted)
    found = numbers(values) + 0.0  # -0.0 is 0.0
    if np.isinf(found).any():
        raise bad_numbers(column, len(found), 0, int(np.isinf(found).sum()))
    return pa.array(found, mask=np.isnan(found))


def values_to_json(values: pa.Array) -> list[Any]:
    """Categories as JSON has them; dates as ISO 8601."""
    if _T.is_date(values.type):
        return [None if v is None else v.isoformat() for v in values.to_pylist()]
    return list(values.to_pylist())


def values_from_json(values: list[Any], kind: pa.DataType) -> pa.Array:
    """What `values_to_json` gave, in its type."""
    return pa.array(values, pa.string()).cast(kind) if _T.is_date(kind) else pa.array(values, kind)


def show(value: Any) -> str:
    """A category, or a bucket's edge, in a feature's name."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and math.fabs(value) < 1e15 else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- text and tokens --------------------------------------------------------------------------------------------


def check_text(column: Column) -> None:
    """Refuse a column that is not of text.

    Raises:
        DataError: It is not.
    """
    kind = plain_type(column.type)
    if not is_text(kind) and not _T.is_null(kind):
        raise _refuse(column, "text")


def token_type(column: Column) -> pa.DataType:
    """The Arrow type that tokens of this column, text or lists, are kept in.

    Raises:
        DataError: The column is neither.
    """
    kind = plain_type(column.type)
    if is_list(kind):
        return category_type(Column(column.name, kind.value_type, column.where))
    check_text(column)
    return pa.string()


@dataclass(frozen=True)
class Tokenized:
    """Different texts (or lists) of a block and their tokens.

    Attributes:
        rows: int64 [rows], which text each row has, from 0; `count` where the row has none.
        count: How many texts there are.
        parents: int64 [tokens], the text that a token is of; a text's tokens are all different.
        values: The tokens.
    """

    rows: NDArray[np.int64]
    count: int
    parents: NDArray[np.int64]
    values: pa.Array


def texts(values: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """The different texts of a block, and which one each row has (their number where it has none)."""
    encoded = plain(values).cast(pa.string()).dictionary_encode()
    count = len(encoded.dictionary)
    return encoded.dictionary, encoded.indices.fill_null(count).to_numpy().astype(np.int64)


def tokens(values: pa.Array, kind: pa.DataType, separator: str, column: Column) -> Tokenized:
    """Cut the texts of a block, or take its lists, into tokens."""
    values = plain(values)
    if is_list(values.type):
        rows, count = np.arange(len(values)), len(values)
        if _T.is_fixed_size_list(values.type):
            values = values.cast(pa.list_(values.type.value_type))
        lists = values
    else:
        different, rows = texts(values)
        count = len(different)
        lists = pc.split_pattern(different, separator)
    found = pc.list_flatten(lists)
    parents = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    found = to_categories(found, kind, column)
    if _T.is_string(found.type):
        found = pc.utf8_trim_whitespace(found)
        good = pc.fill_null(pc.not_equal(found, ""), False)
    else:
        good = found.is_valid()
    found, parents = found.filter(good), parents[good.to_numpy(zero_copy_only=False)]
    # A token that a text has twice counts once.
    codes = found.dictionary_encode().indices.to_numpy().astype(np.int64)
    _, first = np.unique(parents * (int(codes.max(initial=0)) + 1) + codes, return_index=True)
    first.sort()
    return Tokenized(rows, count, parents[first], found.take(pa.array(first)))
