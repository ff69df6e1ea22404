"""What the tables of a warehouse hold, as far as drafting a config needs to know: types, keys, values, gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

    from sp_ray_ml.data.warehouse import Warehouse

__all__ = ["SAMPLE_ROWS", "Column", "Table", "profile"]

SAMPLE_ROWS = 200_000
"""Rows of a table that are looked at, the first ones."""

Kind = Literal["number", "time", "text", "switch", "list", "other"]

_ID = re.compile(r"(^|_)(id|key|uuid|sku|code|no|nr)$|[a-z](Id|ID|Key|UUID)$", re.IGNORECASE)
_CLOCK = re.compile(
    r"(^|_)(time|timestamp|ts|date|datetime|at|when|created|seconds|epoch)(_|$)", re.IGNORECASE
)
_SEPARATORS = ("|", ";", ",", " ")
_LARGEST_SECONDS, _SMALLEST_SECONDS = 32_503_680_000, 100_000_000


@dataclass(frozen=True, eq=False)
class Column:
    """One column, as far as the sample shows.

    Attributes:
        name: Its name.
        values: The sample.
    """

    name: str
    values: pa.ChunkedArray

    @cached_property
    def kind(self) -> Kind:
        """What sort of values it has."""
        import pyarrow as pa

        kind = self.values.type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_boolean(kind):
            return "switch"
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
            return "number"
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return "time"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "text"
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            return "list" if pa.types.is_string(kind.value_type) else "other"
        return "other"

    @cached_property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers."""
        import pyarrow as pa

        return bool(pa.types.is_integer(self.values.type))

    @cached_property
    def nulls(self) -> int:
        """How many values are missing, NaN counted."""
        import pyarrow.compute as pc

        return int(pc.sum(pc.is_null(self.values, nan_is_null=True)).as_py() or 0)

    @cached_property
    def distinct(self) -> pa.Array:
        """The different values, without null."""
        import pyarrow.compute as pc

        return pc.drop_null(pc.unique(self._plain))

    @property
    def _plain(self) -> pa.ChunkedArray:
        import pyarrow as pa

        values = self.values
        return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values

    @cached_property
    def is_key(self) -> bool:
        """Whether every row has another value."""
        can = self.is_integer or self.kind == "text"
        return (
            can
            and bool(len(self.values))
            and not self.values.null_count
            and len(self.distinct) == len(self.values)
        )

    @property
    def looks_like_id(self) -> bool:
        """By its name and type."""
        return (self.is_integer or self.kind == "text") and bool(_ID.search(self.name))

    @cached_property
    def is_clock(self) -> bool:
        """Whether it says when: a timestamp, a date, or whole seconds since 1970 under a name that says so."""
        if self.kind == "time":
            return True
        if not (self.is_integer and _CLOCK.search(self.name)):
            return False
        low, high = self.range
        return low is not None and low >= _SMALLEST_SECONDS and high <= _LARGEST_SECONDS

    @cached_property
    def range(self) -> tuple[Any, Any]:
        """The smallest and the largest value; None where there are only nulls."""
        import pyarrow.compute as pc

        ends = pc.min_max(self.values).as_py()
        return ends["min"], ends["max"]

    @cached_property
    def separator(self) -> str | None:
        """What stands between several values in one text (`Comedy|Drama`), where the parts repeat more than the whole."""
        texts = [text for text in self.distinct.to_pylist() if text]
        for separator in _SEPARATORS:
            parts = [[part.strip() for part in text.split(separator) if part.strip()] for text in texts]
            vocabulary = {part for row in parts for part in row}
            if sum(map(len, parts)) > 1.1 * len(texts) and len(vocabulary) <= min(200, 0.75 * len(texts)):
                return separator
        return None

    @cached_property
    def is_finite(self) -> bool:
        """Whether no number is infinite."""
        import pyarrow as pa
        import pyarrow.compute as pc

        return not pa.types.is_floating(self.values.type) or not pc.any(pc.is_inf(self.values)).as_py()

    def share_in(self, other: Column) -> float:
        """How many of its different values the other column has, 0 to 1; 0 for columns of other types."""
        import pyarrow as pa
        import pyarrow.compute as pc

        mine, theirs = self.distinct, other.distinct
        if (
            self.is_integer != other.is_integer
            or not len(mine)
            or not (self.is_integer or self.kind == other.kind == "text")
        ):
            return 0.0
        try:
            found = pc.is_in(mine.cast(theirs.type), theirs)
        except pa.ArrowException:
            return 0.0
        return float(pc.mean(found.cast(pa.int8())).as_py())


@dataclass(frozen=True, eq=False)
class Table:
    """One table.

    Attributes:
        name: Its name.
        columns: Its columns.
        rows: How many rows it has; those of the sample where that is not known.
        whole: Whether the sample is all of it.
    """

    name: str
    columns: Sequence[Column]
    rows: int
    whole: bool

    def column(self, name: str) -> Column:
        """The column of a name."""
        return next(column for column in self.columns if column.name == name)

    @cached_property
    def key(self) -> Column | None:
        """The column that tells its rows apart: one that looks like an id, else the first."""
        keys = [column for column in self.columns if column.is_key and not column.is_clock]
        return next((column for column in keys if column.looks_like_id), keys[0] if keys else None)


def profile(warehouse: Warehouse) -> list[Table]:
    """Look at the first rows of every table."""
    return [_table(warehouse, name) for name in warehouse.tables()]


def _table(warehouse: Warehouse, name: str) -> Table:
    import pyarrow as pa

    source = warehouse.source(name)
    batches, rows = [], 0
    for batch in source.batches():
        batches.append(batch.slice(0, SAMPLE_ROWS - rows))
        rows += len(batches[-1])
        if rows >= SAMPLE_ROWS:
            break
    table = pa.Table.from_batches(batches, schema=source.schema)
    total = source.num_rows if source.num_rows is not None else rows
    return Table(
        name, [Column(n, table[n]) for n in table.column_names], total, rows < SAMPLE_ROWS or total == rows
    )
