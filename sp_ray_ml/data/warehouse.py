"""`Warehouse`: tables in, tables out, one contract for every engine; `open_warehouse` finds the engine by URL."""

from __future__ import annotations

import importlib.metadata
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sp_ray_ml._secrets import redact
from sp_ray_ml.config import near_match
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import ConfigError, DataError, TableNotFoundError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Mode", "Warehouse", "Where", "open_warehouse"]

Where = Sequence[tuple[str, str, Any]]
"""Conditions that all must hold: `(column, operator, value)`, operator one of `== != < <= > >= in`.

A null value means "is null" (`==`) or "is not null" (`!=`); otherwise a row with a null is left out. Dates and
times may be ISO text; one without a zone is UTC.
"""

Mode = Literal["replace", "append", "partition"]


class Warehouse(ABC):
    """Tables that can be read and written by name.

    Files and connections are open only while something is read or written. Reading never needs to write: a folder
    or a file that is read-only will do. A third party's class passes `sp_ray_ml.testing.WarehouseContract` and is
    found by its URL's scheme through the entry-point group `sp_ray_ml.warehouse`.

    Attributes:
        url: What `open_warehouse` opens it by.
    """

    scheme: ClassVar[str]
    """What its URLs begin with."""
    has_sql: ClassVar[bool] = True
    """Whether `source` takes SQL."""

    url: str

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {redact(self.url)}>"

    @abstractmethod
    def tables(self) -> list[str]:
        """Names of all tables, sorted.

        Raises:
            WarehouseError: There is no such warehouse, or it cannot be read.
            LockedError: Another process is writing.
        """

    def schema(self, table: str) -> pa.Schema:
        """Arrow schema of a table or query, without reading its rows.

        Raises:
            TableNotFoundError: There is no such table.
        """
        return self.source(table).schema

    @abstractmethod
    def source(self, query: str, *, columns: Sequence[str] | None = None, where: Where = ()) -> Source:
        """A table or a query as a stream that can be opened again. Nothing is read yet but the schema.

        Args:
            query: A table's name, or where the engine has it one SQL `SELECT` (or `WITH … SELECT`).
            columns: Only these, in this order; the others are not read.
            where: Only rows that meet all of these; what cannot match is not read.

        Raises:
            TableNotFoundError: There is no such table.
            ColumnNotFoundError: There is no such column.
            WarehouseError: The SQL is wrong, would write, or is more than one statement.
        """

    @abstractmethod
    def check(
        self, table: str, schema: pa.Schema, *, mode: Mode = "replace", partition_by: str | None = None
    ) -> None:
        """Refuse what `write` would refuse of rows with these columns, before there are any; nothing is written.

        Args:
            table: As of `write`.
            schema: Of the rows.
            mode: As of `write`.
            partition_by: As of `write`.

        Raises:
            DataError: As of `write`.
            ColumnNotFoundError: There is no column `partition_by`.
            LockedError: Another process is writing, and the table cannot be looked at.
        """

    @abstractmethod
    def write(
        self,
        table: str,
        data: Any,
        *,
        mode: Mode = "replace",
        partition_by: str | None = None,
        commit: str | None = None,
    ) -> int:
        """Write a table, all of it or nothing: until the end readers see what was there before.

        Args:
            table: Its name. The warehouse is made when there is none yet.
            data: Anything `as_source` takes; it is streamed.
            mode: `replace` the table, or `append` to it (which makes it if there is none), or replace only those
                `partition`s that occur in the data: afterwards the rows with such a value in the column
                `partition_by` are those of the data, and all other rows are what they were. A stream without rows
                then changes nothing.
            partition_by: A column of integers, booleans, text, days or times, none of them null. Needed by the mode
                `partition`; otherwise how a new table is laid out where the engine has layouts (folders in Parquet,
                a partitioned table in BigQuery). A table that is there keeps its layout when rows are appended.
            commit: An id for this write. One whose rows the table already has is not written again: a write that
                is repeated after a crash never doubles rows. Replacing a table forgets what was committed before,
                replacing partitions does not.

        Returns:
            How many rows were written; 0 if `commit` was there already.

        Raises:
            DataError: Rows for a table that is there do not have its columns and types, or there is a null in the
                column `partition_by`. Nothing is written.
            ColumnNotFoundError: There is no column `partition_by`.
            LockedError: Another process is writing.
            StorageError: It cannot be written (disk full, no permission). The table is as it was.
        """

    @abstractmethod
    def fingerprint(self, table: str) -> str:
        """Text that changes when the data of a table or query may have changed; found without reading the rows.

        Raises:
            TableNotFoundError: There is no such table.
        """


_MODES = ["replace", "append", "partition"]


def check_write(table: str, mode: str, schema: pa.Schema, partition_by: str | None = None) -> None:
    """What every warehouse refuses: a name that is no name, an unknown mode, no columns or the same one twice, a
    column to partition by that is not there or of a type that has no exact values.
    """
    if (
        not table
        or table != table.strip()
        or table.startswith((".", "_"))
        or re.search(r"[/\\\x00-\x1f]", table)
    ):
        raise DataError(
            f"{table!r} cannot be a table's name", hint="No slashes, and nothing but a letter or digit first"
        )
    if len(table.encode()) > 200:
        raise DataError("a table's name has at most 200 bytes", where=table[:40] + "…")
    if mode not in _MODES:
        raise DataError(f"unknown mode {mode!r}{near_match(mode, _MODES)}", where=table)
    names = schema.names
    if not names:
        raise DataError("there are no columns to write", where=table)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"column {twice[0]!r} is there twice", where=table)
    if partition_by is not None:
        from sp_ray_ml.data._schema import check_partition_column

        require_columns(schema, [partition_by], table)
        check_partition_column(schema.field(partition_by), table)
    elif mode == "partition":
        raise DataError(
            "mode partition needs the column whose values are replaced",
            where=table,
            hint="Give it: partition_by=COLUMN",
        )


def no_table(table: str, tables: Sequence[str], url: str) -> TableNotFoundError:
    """The error for a table that is not there, with a near match and what there is."""
    have = ", ".join(tables[:20]) + (", …" if len(tables) > 20 else "")
    return TableNotFoundError(
        f"no table {table!r}{near_match(table, tables)}",
        where=str(redact(url)),
        hint=f"It has: {have}" if have else "It has no tables",
    )


_SQL = re.compile(
    r"^\s*(--.*\n\s*)*\(*\s*(select|with|from|values|insert|update|delete|drop|create|alter|copy|attach|detach|merge|"
    r"truncate|pragma|set|install|load|call|explain|vacuum|checkpoint|export|import|begin|use)\b[\s*(]",
    re.IGNORECASE,
)


def is_sql(query: str) -> bool:
    """Whether a query that names no table is meant as SQL."""
    return bool(_SQL.match(query))


# --- by URL -----------------------------------------------------------------------------------------------------


def _duckdb(url: str) -> Warehouse:
    from sp_ray_ml.data._duckdb import DuckDBWarehouse

    if "://" not in url:
        return DuckDBWarehouse(Path(url))
    rest = url.partition("://")[2]
    if not rest.startswith("/") or rest == "/":
        raise ConfigError(
            "a DuckDB URL has three slashes for a relative path, four for an absolute one",
            where=url,
            hint=f"For example: duckdb:///{rest.strip('/') or 'data.duckdb'}",
        )
    return DuckDBWarehouse(Path(rest[1:]))


def _parquet(url: str) -> Warehouse:
    from sp_ray_ml.data._parquet import ParquetWarehouse

    return ParquetWarehouse(url.removeprefix("parquet://").removeprefix("file://"))


def _bigquery(url: str) -> Warehouse:
    from sp_ray_ml.data._bigquery import BigQueryWarehouse

    return BigQueryWarehouse(url)


def _iceberg(url: str) -> Warehouse:
    from sp_ray_ml.data._iceberg import IcebergWarehouse

    return IcebergWarehouse(url)


_BUILT_IN: dict[str, Callable[[str], Warehouse]] = {
    "duckdb": _duckdb,
    "iceberg": _iceberg,
    "bigquery": _bigquery,
    **dict.fromkeys(["parquet", "file", "s3", "gs"], _parquet),
}


def open_warehouse(url: str | os.PathLike[str]) -> Warehouse:
    """The warehouse at a URL or path. Nothing is opened or made yet.

    Args:
        url: `duckdb:///relative.duckdb`, `duckdb:////absolute.duckdb`, a path that ends in `.duckdb`, `.ddb` or
            `.db` or is a DuckDB file; `parquet://folder`, `file:///folder` or a folder's path (Parquet);
            `s3://bucket/folder`, `gs://bucket/folder` and whatever else fsspec opens (Parquet); `bigquery://project/dataset`. Other schemes come with installed packages (entry-point group `sp_ray_ml.warehouse`: a callable that takes
            the URL).

    Raises:
        ConfigError: The scheme is unknown.
    """
    text = os.fspath(url)
    scheme = check_url(text)
    if not scheme:
        path = Path(text).expanduser()
        return _duckdb(str(path)) if _is_duckdb(path) else _parquet(str(path))
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme](text)
    if point := _points().get(scheme):
        warehouse: Warehouse = point.load()(text)
        return warehouse
    return _parquet(text)


def _points() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group="sp_ray_ml.warehouse")}


def check_url(url: str) -> str:
    """Check what can be known of a warehouse by its URL alone, importing nothing heavy.

    Returns:
        Its scheme, empty for a path.

    Raises:
        ConfigError: The scheme is unknown, or the URL is none of its scheme.
    """
    if not url.strip():
        raise ConfigError(
            "a warehouse's URL is empty", hint="Give a folder of Parquet files or a DuckDB file"
        )
    scheme, mark, _ = url.partition("://")
    if not mark:
        return ""
    if scheme == "bigquery":
        from sp_ray_ml.data._bigquery_place import parse_url

        parse_url(url)
    if scheme in _BUILT_IN or scheme in (points := _points()):
        return scheme
    import fsspec

    if scheme in fsspec.available_protocols():
        return scheme
    known = sorted({*_BUILT_IN, *points})
    raise ConfigError(
        f"unknown kind of warehouse {scheme!r}{near_match(scheme, known)}",
        where=str(redact(url)),
        hint=f"Known: {', '.join(f'{name}://' for name in known)}, or a path",
    )


def _is_duckdb(path: Path) -> bool:
    if path.is_file():
        if path.suffix in {".parquet", ".pq"}:
            raise ConfigError(
                "this is a table, not a warehouse", where=str(path), hint=f"Give its folder: {path.parent}"
            )
        try:
            with path.open("rb") as file:
                return file.read(12)[8:] == b"DUCK" or path.suffix in {".duckdb", ".ddb", ".db"}
        except OSError:  # said when it is read
            return True
    return path.suffix in {".duckdb", ".ddb", ".db"} and not path.is_dir()
