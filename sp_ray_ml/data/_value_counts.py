"""How preprocessors look at all rows of text and categories: exact counts of each value."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data._columns import (
    Column,
    category_type,
    check_text,
    to_categories,
    token_type,
    tokens,
    values_to_json,
)
from sp_ray_ml.data._preprocessing import Accumulator

__all__ = ["Constant", "MostFrequent", "TextRows", "TokenCounts", "ValueCounts"]


class ValueCounts(Accumulator):
    """How many rows each value has; whole numbers, so that their order does not matter."""

    def __init__(self, column: Column, min_count: int = 1, max_values: int | None = None) -> None:
        super().__init__(column)
        self._type = self._value_type()
        self._min_count = min_count
        self._max_values = max_values
        self._parts: list[pa.Table] = []
        self._pending = self._kept = 0

    def _value_type(self) -> pa.DataType:
        return category_type(self.column)

    def update(self, block: pa.Array) -> None:
        self.rows += len(block)
        counts = pc.value_counts(to_categories(block, self._type, self.column))
        values, count = counts.field("values"), counts.field("counts")
        if values.null_count:
            self.missing += pc.sum(count.filter(values.is_null())).as_py()
            keep = values.is_valid()
            values, count = values.filter(keep), count.filter(keep)
        self._add(values, count)

    def _add(self, values: pa.Array, count: pa.Array) -> None:
        self._parts.append(pa.table({"value": values, "count": count}))
        self._pending += len(values)
        if self._pending > 2 * self._kept + 1_000_000:  # bounds the memory by the number of different values
            self._table()

    def merge(self, following: Self) -> None:
        super().merge(following)
        self._parts += following._parts
        self._pending += following._pending

    def _table(self) -> pa.Table:
        if not self._parts:
            return pa.table({"value": pa.nulls(0, self._type), "count": pa.nulls(0, pa.int64())})
        grouped = pa.concat_tables(self._parts).group_by("value", use_threads=False)
        table = grouped.aggregate([("count", "sum")]).select(["value", "count_sum"])
        table = table.rename_columns(["value", "count"])
        self._parts, self._pending, self._kept = [table], table.num_rows, table.num_rows
        return table

    def finish(self) -> dict[str, Any]:
        table = self._table()
        table = table.filter(pc.greater_equal(table["count"], self._min_count))
        if self._max_values is not None:
            order = [("count", "descending"), ("value", "ascending")]
            table = table.take(pc.sort_indices(table, sort_keys=order)[: self._max_values])
        values = pc.cast(table["value"], self._type).combine_chunks()
        values = values.take(pc.sort_indices(values))
        return self._state(value_type=str(self._type), values=values_to_json(values))


class TokenCounts(ValueCounts):
    """How many rows each value of a delimited text, or of a list, has."""

    def __init__(self, column: Column, min_count: int, max_values: int | None, separator: str) -> None:
        super().__init__(column, min_count, max_values)
        self._separator = separator

    def _value_type(self) -> pa.DataType:
        return token_type(self.column)

    def update(self, block: pa.Array) -> None:
        self.rows += len(block)
        self.missing += block.null_count
        found = tokens(block, self._type, self._separator, self.column)
        repeats = np.bincount(found.rows, minlength=found.count)
        counts = pa.array(repeats[found.parents].astype(np.int64))
        self._add(found.values, counts)

    def finish(self) -> dict[str, Any]:
        state = super().finish()
        if not state["values"]:
            raise self.column.error(
                f"no value in {self.rows} rows ({self.missing} of them missing) is frequent enough to keep",
                "Lower min_count, or leave the column out",
            )
        return state


class MostFrequent(ValueCounts):
    """The most frequent value, to fill with."""

    def finish(self) -> dict[str, Any]:
        self._max_values = 1
        state = super().finish()
        if not state["values"]:
            raise self.column.error(f"none of its {self.rows} rows has a value", "Use strategy: constant")
        return self._state(fill=state["values"][0], fill_type=state["value_type"])


class Constant(Accumulator):
    """A given value, to fill with."""

    def __init__(self, column: Column, value: float | str | bool) -> None:
        super().__init__(column)
        kind = category_type(column)
        own = pa.scalar(value)
        self._type = own.type if pa.types.is_null(kind) else kind
        mixed = pa.types.is_boolean(own.type) != pa.types.is_boolean(self._type)
        try:
            if mixed or (pa.types.is_string(self._type) and not isinstance(value, str)):
                raise pa.ArrowInvalid("of another type")
            self._value = pa.array([value]).cast(self._type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise column.error(
                f"value {value!r} does not go into a column of {self._type}",
                f"Set a value of {self._type}, or cast the column in the query",
            ) from None

    def update(self, block: pa.Array) -> None:
        self.rows += len(block)
        found = to_categories(block, self._type, self.column)
        self.missing += found.null_count

    def finish(self) -> dict[str, Any]:
        return self._state(fill=values_to_json(self._value)[0], fill_type=str(self._type))


class TextRows(Accumulator):
    """Text that needs no statistics: only its type is checked."""

    def __init__(self, column: Column) -> None:
        super().__init__(column)
        check_text(column)

    def update(self, block: pa.Array) -> None:
        self.rows += len(block)
        self.missing += block.null_count

    def finish(self) -> dict[str, Any]:
        return self._state()
