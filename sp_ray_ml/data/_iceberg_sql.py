"""SQL over Iceberg tables: DuckDB over the files of one snapshot each, into which columns and filters are pushed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sp_ray_ml._remote import filesystem, is_remote, protocol
from sp_ray_ml.data._sql import file_list, memory_connection, sql_errors
from sp_ray_ml.data._where import quoted

if TYPE_CHECKING:
    from sp_ray_ml.data._iceberg_source import IcebergSource

__all__ = ["View", "iceberg_connection", "view_of"]

_ROWS, _SHAPE = "_sp_ray_ml_rows", "_sp_ray_ml_shape"


@dataclass(frozen=True)
class View:
    """A table as a query sees it.

    Attributes:
        source: Its rows.
        files: The files that have them just as they are; None where only PyIceberg can read them, since rows were
            deleted by others or columns changed: then they are copied into the query's database.
    """

    source: IcebergSource
    files: Sequence[str] | None


def view_of(source: IcebergSource) -> View:
    """The table; its files' ends are read."""
    return View(source, source.files() or None)


def iceberg_connection(views: Mapping[str, View]) -> Any:
    """A database in memory with a view of each table."""
    connection = memory_connection()
    for name, view in views.items():
        with sql_errors(name, ()):
            if view.files is None:
                rows = pa.RecordBatchReader.from_batches(view.source.schema, view.source.batches())
                connection.register(_ROWS, rows)
                connection.execute(f"CREATE TABLE {quoted(name)} AS SELECT * FROM {_ROWS}")  # noqa: S608
                connection.unregister(_ROWS)
                continue
            read = f"read_parquet({file_list(_known(connection, view.files))}, hive_partitioning = false)"
            have = _types(connection, f"SELECT * FROM {read} LIMIT 0")  # noqa: S608
            connection.register(_SHAPE, view.source.schema.empty_table())
            wanted = _types(connection, f"SELECT * FROM {_SHAPE}")  # noqa: S608
            connection.unregister(_SHAPE)
            # Small integers and vectors are kept in other types.
            columns = ", ".join(
                quoted(column)
                if have[column] == kind
                else f"CAST({quoted(column)} AS {kind}) AS {quoted(column)}"
                for column, kind in wanted.items()
            )
            connection.execute(f"CREATE VIEW {quoted(name)} AS SELECT {columns} FROM {read}")  # noqa: S608
    return connection


def _types(connection: Any, query: str) -> dict[str, str]:
    """What DuckDB calls the columns' types."""
    return {row[0]: row[1] for row in connection.execute(f"DESCRIBE {query}").fetchall()}


def _known(connection: Any, files: Sequence[str]) -> list[str]:
    """The files as DuckDB finds them: elsewhere than on disks through fsspec's file system."""
    if not is_remote(files[0]):
        return [file.removeprefix("file://") for file in files]
    found = []
    for file in files:
        fs, path = filesystem(file)
        if not connection.filesystem_is_registered(protocol(fs)):
            connection.register_filesystem(fs)
        found.append(fs.unstrip_protocol(path))
    return found
