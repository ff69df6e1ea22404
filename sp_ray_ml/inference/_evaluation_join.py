"""Predictions and truth of rows brought together by their ids: by DuckDB, which spills to disk what is too large."""

# ruff: noqa: S608 - the names in the queries are quoted

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import duckdb
import pyarrow as pa

from sp_ray_ml.data._where import quoted
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.inference._evaluation_ids import check_kinds

__all__ = ["joined"]

_MEMORY = "1GB"
_ROWS = 1 << 18


def joined(predictions: Source, truth: Source, on: Sequence[str]) -> Source:
    """The rows of predictions with the columns of truth that have the same ids.

    Raises:
        ColumnNotFoundError: An id is not there.
        DataError: A column is in both, or ids are of different kinds; while it is read: a row of predictions has no truth, or more than one.
    """
    for source in (predictions, truth):
        require_columns(source.schema, on, source.name)
    check_kinds(on, predictions.schema, truth.schema, truth.name)
    extra = [name for name in truth.schema.names if name not in on]
    if both := [name for name in extra if name in predictions.schema.names]:
        raise DataError(
            f"both tables have a column {both[0]!r}",
            where=truth.name,
            hint="Rename it in one of them, or leave it out",
        )
    fields = [*predictions.schema, *(truth.schema.field(name) for name in extra)]

    def stream() -> Iterator[pa.RecordBatch]:
        with tempfile.TemporaryDirectory(prefix="sp-ray-join-") as folder, duckdb.connect() as database:
            database.execute("SET memory_limit = $1", [_MEMORY])
            database.execute("SET temp_directory = $1", [folder])
            # Metrics do not depend on the order of the rows.
            database.execute("SET preserve_insertion_order = false")
            for name, source in (("p", predictions), ("t", truth)):
                reader = pa.RecordBatchReader.from_batches(source.schema, source.batches())
                database.register(f"{name}_rows", reader)
                database.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM {name}_rows")
                database.unregister(f"{name}_rows")
            keys = ", ".join(quoted(name) for name in on)
            same = " AND ".join(f"p.{quoted(name)} = t.{quoted(name)}" for name in on)
            doubled = database.execute(
                f"SELECT {keys}, count(*) FROM t GROUP BY {keys} HAVING count(*) > 1 LIMIT 1"
            ).fetchone()
            if doubled:
                raise DataError(f"{doubled[:-1]} is there {doubled[-1]} times", where=truth.name)
            lone = database.execute(f"SELECT {keys} FROM p ANTI JOIN t ON {same} LIMIT 1").fetchone()
            if lone:
                raise DataError(
                    f"{lone} has no truth",
                    where=predictions.name,
                    hint="Leave out the rows that cannot be measured",
                )
            wanted = ", ".join(
                f"{'p' if name in predictions.schema.names else 't'}.{quoted(name)}"
                for name in (field.name for field in fields)
            )
            result = database.execute(f"SELECT {wanted} FROM p JOIN t ON {same}")
            for batch in result.to_arrow_reader(_ROWS):
                yield pa.RecordBatch.from_arrays(
                    [
                        column if column.type == field.type else column.cast(field.type)
                        for column, field in zip(batch.columns, fields, strict=True)
                    ],
                    schema=schema,
                )

    schema = pa.schema(fields)
    return Source(predictions.name, schema, stream, num_rows=predictions.num_rows)
