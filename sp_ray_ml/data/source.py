"""`Source`: a schema and a stream of Arrow batches that can be opened again; whatever holds rows becomes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sp_ray_ml.config import near_match
from sp_ray_ml.errors import ColumnNotFoundError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

__all__ = ["BLOCK_ROWS", "Source", "as_source", "require_columns"]

BLOCK_ROWS = 65_536
"""Rows of one of `Source.blocks()`: what statistics and metrics are computed over, and merged in order."""

_RAY_BLOCK_BYTES = 64 << 20


class Source:
    """Rows of one table or query, read as often as needed and never held as a whole.

    Args:
        name: What messages call it: a table, a path.
        schema: Arrow schema of every batch.
        open: Starts a fresh stream of record batches; called once a pass.
        num_rows: How many rows there are, where that is known without reading them.

    A source keeps no open file or connection between passes, and closes what a pass opened when that pass ends,
    is closed or is dropped half-way.
    """

    name: str
    schema: pa.Schema
    num_rows: int | None

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        open: Callable[[], Iterator[pa.RecordBatch]],
        *,
        num_rows: int | None = None,
    ) -> None:
        self.name = name
        self.schema = schema.remove_metadata()
        self.num_rows = num_rows
        self._open = open

    def __repr__(self) -> str:
        rows = "" if self.num_rows is None else f", {self.num_rows:,} rows"
        return f"<{type(self).__name__} {self.name!r}: {len(self.schema)} columns{rows}>"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """A fresh stream of the rows, in batches of whatever size they come in; empty ones are left out.

        Raises:
            DataError: A batch does not have the schema that was declared.
        """
        stream = self._open()
        try:
            for batch in stream:
                if batch.num_rows:
                    yield self._checked(batch)
        finally:
            # A generator's close() ends the reader or connection below it now, not when memory is collected.
            if callable(close := getattr(stream, "close", None)):
                close()

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        if not batch.schema.equals(self.schema):
            for declared, got in zip(self.schema, batch.schema, strict=False):
                if not declared.equals(got) and (declared.name, declared.type) != (got.name, got.type):
                    raise DataError(
                        f"the stream has column {got.name!r} of type {got.type} where {declared.name!r} of type "
                        f"{declared.type} was declared",
                        where=self.name,
                    )
            if len(batch.schema) != len(self.schema):
                raise DataError(
                    f"the stream has {len(batch.schema)} columns, {len(self.schema)} were declared",
                    where=self.name,
                )
        return pa.RecordBatch.from_arrays(batch.columns, schema=self.schema)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows in blocks of exactly `rows`, the last one shorter: the same blocks however the stream is cut.

        Args:
            rows: Rows a block, at least 1.
        """
        import pyarrow as pa

        def joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
            return parts[0] if len(parts) == 1 else pa.concat_batches(parts)

        waiting: list[pa.RecordBatch] = []
        count = 0
        with closing(_generator(self.batches())) as stream:
            for batch in stream:
                at = 0
                while count + batch.num_rows - at >= rows:
                    take = rows - count
                    waiting.append(batch.slice(at, take))
                    yield joined(waiting)
                    waiting, count, at = [], 0, at + take
                if at < batch.num_rows:
                    waiting.append(batch.slice(at))
                    count += batch.num_rows - at
        if waiting:
            yield joined(waiting)

    def to_arrow(self) -> pa.Table:
        """All rows in memory; a source without rows gives a table without rows, with the same columns."""
        import pyarrow as pa

        return pa.Table.from_batches(self.batches(), schema=self.schema)

    def to_ray(self) -> ray.data.Dataset:
        """The rows as a Ray Dataset in the same order, through Ray's object store. Starts Ray if it is not up."""
        import pyarrow as pa
        import ray
        import ray.data

        refs, waiting, size = [], [], 0
        with closing(_generator(self.batches())) as stream:
            for batch in stream:
                waiting.append(batch)
                size += batch.nbytes
                if size >= _RAY_BLOCK_BYTES:
                    refs.append(ray.put(pa.Table.from_batches(waiting)))
                    waiting, size = [], 0
        if waiting or not refs:
            refs.append(ray.put(pa.Table.from_batches(waiting, schema=self.schema)))
        return ray.data.from_arrow_refs(refs)

    def pieces(self, rows: int) -> Sequence[Source] | None:  # noqa: ARG002  of those that have pieces
        """The rows in parts of about `rows`, in their order, each read without the others and by any process.

        None where they can only be read from their start.
        """
        return None

    def streams(self, note: str | None) -> tuple[str, Sequence[Source]] | None:  # noqa: ARG002  as above
        """The rows in parts as their store cuts them, each read without the others and by any process.

        Args:
            note: What an earlier call gave, in whatever process: the parts are the same ones, if the store has them
                yet.

        Returns:
            Text that stands for these parts and no others, and the parts; None where the store does not cut.
        """
        return None

    def mark(self) -> str | None:
        """Text that changes when the rows may have; None where only reading them would tell."""
        return None

    def select(self, columns: Sequence[str]) -> Source:
        """The same rows with these columns only, in this order; pushed down where the source can.

        Raises:
            ColumnNotFoundError: There is no such column.
        """
        import pyarrow as pa

        names = require_columns(self.schema, columns, self.name)

        def stream() -> Iterator[pa.RecordBatch]:
            with closing(_generator(self.batches())) as batches:
                for batch in batches:
                    yield batch.select(names)

        schema = pa.schema([self.schema.field(name) for name in names])
        return Source(self.name, schema, stream, num_rows=self.num_rows)


def _generator(stream: Iterator[Any]) -> Any:
    """`stream` as something with `close`, which an iterator of a subclass's own need not have."""
    return stream if hasattr(stream, "close") else (item for item in stream)


def require_columns(schema: pa.Schema, columns: Sequence[str], where: str) -> list[str]:
    """The columns as a list, when the schema has every one of them.

    Raises:
        ColumnNotFoundError: One is missing; the message has a near match and what there is.
    """
    for column in columns:
        if column not in schema.names:
            have = ", ".join(schema.names[:20]) + (", …" if len(schema.names) > 20 else "")
            raise ColumnNotFoundError(
                f"no column {column!r}{near_match(column, schema.names)}",
                where=where,
                hint=f"It has: {have}" if have else None,
            )
    return list(columns)


def as_source(data: Any, name: str = "data") -> Source:
    """Turn whatever holds rows into a `Source`.

    Args:
        data: A `Source`, `pyarrow.Table` or `RecordBatch`, Ray Dataset (its order is kept), pandas DataFrame (its
            index is left out), anything that exports an Arrow stream (polars, DuckDB), a mapping from column names
            to values, or the path or URL of a Parquet file or of a folder of them.
        name: What messages call it.

    Raises:
        StorageError: The path does not exist or holds no Parquet.
        DataError: It is none of these, or its columns cannot become Arrow's.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        from sp_ray_ml.data._parquet_files import parquet_source

        return parquet_source(data, name=None if name == "data" else name)
    if type(data).__module__.partition(".")[0] == "ray":
        from sp_ray_ml.data._ray_source import ray_source

        return ray_source(data, name)
    table = _as_table(data, name)
    return Source(name, table.schema, lambda: iter(table.to_batches()), num_rows=table.num_rows)


def _as_table(data: Any, name: str) -> pa.Table:
    import pyarrow as pa

    try:
        if isinstance(data, pa.Table):
            return data
        if isinstance(data, pa.RecordBatch):
            return pa.Table.from_batches([data])
        if type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns"):
            return pa.Table.from_pandas(data, preserve_index=False)
        if isinstance(data, Mapping):
            return pa.table({str(key): values for key, values in data.items()})
        if hasattr(data, "__arrow_c_stream__"):
            return pa.table(data)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"cannot be read as a table: {error}", where=name) from error
    raise DataError(
        f"{type(data).__name__} is nothing that rows can be read from",
        where=name,
        hint="Give a pyarrow.Table, a pandas DataFrame, a ray.data.Dataset, a Source or a path to Parquet",
    )
