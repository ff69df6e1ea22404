"""A DuckDB file as a warehouse, open only while something is read or written.

A process that writes locks all others out, readers too; readers share. What was committed under which id is in the
table `_sp_ray_ml_commits`, written in the transaction that writes the rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sp_ray_ml.data._columns import with_inner
from sp_ray_ml.data._parquet_files import near_file
from sp_ray_ml.data._schema import cast_batch, check_append, partition_values, plain, rows_per_group
from sp_ray_ml.data._sql import SqlSource, memory_connection, prepare, reader, sql_errors
from sp_ray_ml.data._where import quoted
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.data.warehouse import Mode, Warehouse, Where, check_write, is_sql, no_table
from sp_ray_ml.errors import DataError, StorageError, WarehouseError
from sp_ray_ml.storage import storage_errors

__all__ = ["DuckDBWarehouse"]

_COMMITS = "_sp_ray_ml_commits"
_MAKE_COMMITS = f"CREATE TABLE IF NOT EXISTS {_COMMITS} (table_name VARCHAR, commit_id VARCHAR)"
_BLOCK = "_sp_ray_ml_block"


class DuckDBWarehouse(Warehouse):
    """See the module. Tables of other schemas than `main` are named `schema.table`, and only read.

    Args:
        path: The database file.
    """

    scheme = "duckdb"

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self.url = f"duckdb:///{self.path}"

    # --- reading ------------------------------------------------------------------------------------------------

    def _read(self) -> Any:
        if not self.path.exists():
            raise WarehouseError(
                f"no such database file{near_file(self.path)}",
                where=str(self.path),
                hint="A database is made by the first write to it",
            )
        if not self.path.is_file():
            raise WarehouseError(
                "this is a folder, not a DuckDB file",
                where=str(self.path),
                hint=f"A folder of Parquet files is opened as parquet://{self.path}",
            )
        # Beside a file that is only read, nothing may be spilled.
        spill = {"temp_directory": tempfile.gettempdir()}
        with sql_errors(self.url, ()):
            try:
                return prepare(duckdb.connect(str(self.path), read_only=True, config=spill))
            except duckdb.ConnectionException:
                # This process has it open for writing: DuckDB then has one database for both, and reads see what
                # was committed.
                return prepare(duckdb.connect(str(self.path)))

    def _relations(self, connection: Any) -> dict[str, str]:
        """Tables and views by name, and how SQL calls each."""
        rows = connection.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() "
            "WHERE NOT internal AND NOT temporary AND database_name = current_database() "
            "UNION ALL SELECT schema_name, view_name FROM duckdb_views() "
            "WHERE NOT internal AND NOT temporary AND database_name = current_database()"
        ).fetchall()
        return {
            (table if schema == "main" else f"{schema}.{table}"): f"{quoted(schema)}.{quoted(table)}"
            for schema, table in sorted(rows)
            if table != _COMMITS
        }

    def tables(self) -> list[str]:
        with closing(self._read()) as connection, sql_errors(self.url, ()):
            return sorted(self._relations(connection))

    def source(self, query: str, *, columns: Sequence[str] | None = None, where: Where = ()) -> Source:
        with closing(self._read()) as connection:
            with sql_errors(self.url, ()):
                relations = self._relations(connection)
            relation = relations.get(query)
            if relation is None and not is_sql(query):
                raise no_table(query, sorted(relations), self.url)
            return SqlSource(
                query,
                self._read,
                url=self.url,
                tables=sorted(relations),
                columns=columns,
                where=where,
                relation=relation,
                count=relation is not None,
                opened=connection,
            )

    def fingerprint(self, table: str) -> str:
        # Of the whole file: DuckDB tells nothing cheap about one table that surely changes when its rows do.
        if table not in (tables := self.tables()) and not is_sql(table):
            raise no_table(table, tables, self.url)
        digest = hashlib.sha256(table.encode())
        for path in (self.path, self._log):
            if path.exists():
                with storage_errors(path, "read"):
                    stat = path.stat()
                digest.update(f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ino}\n".encode())
        return digest.hexdigest()[:32]

    @property
    def _log(self) -> Path:
        return self.path.with_name(f"{self.path.name}.wal")

    # --- writing ------------------------------------------------------------------------------------------------

    def check(
        self, table: str, schema: pa.Schema, *, mode: Mode = "replace", partition_by: str | None = None
    ) -> None:
        _check(table, mode, schema, partition_by)
        connect = self._read if self.path.exists() else memory_connection
        with closing(connect()) as connection, sql_errors(self.url, ()):
            self._fitting(connection, table, schema, mode)

    def write(
        self,
        table: str,
        data: Any,
        *,
        mode: Mode = "replace",
        partition_by: str | None = None,
        commit: str | None = None,
    ) -> int:
        source = as_source(data, name=table)
        _check(table, mode, source.schema, partition_by)
        with self._writing() as connection:
            return self._write(connection, table, source, mode, partition_by, commit)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        """A connection in a transaction: committed at the end, undone by an error, with the file if it is new."""
        if self.path.parent.exists() and not self.path.parent.is_dir():
            raise StorageError("cannot write: a part of the path is a file", where=str(self.path))
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        before = _state(self.path) if not new and not self._log.exists() else None
        done = False
        try:
            with sql_errors(self.url, ()):
                connection = prepare(duckdb.connect(str(self.path)))
            try:
                with sql_errors(self.url, ()):
                    connection.execute("BEGIN TRANSACTION")
                yield connection
                with sql_errors(self.url, ()):
                    connection.execute("COMMIT")
                done = True
            finally:
                if not done:
                    with contextlib.suppress(
                        duckdb.Error
                    ):  # a database that failed undoes it when it is opened
                        connection.execute("ROLLBACK")
                with sql_errors(self.url, ()):
                    connection.close()
        finally:
            if new and not done:
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)
                    self._log.unlink(missing_ok=True)
            elif before is not None and not done:
                _shrink(self.path, *before)

    def _write(
        self,
        connection: Any,
        table: str,
        source: Source,
        mode: Mode,
        partition_by: str | None,
        commit: str | None,
    ) -> int:
        name, place = quoted(table), f"{self.url} {table}"
        with sql_errors(self.url, ()):
            exists = self._exists(connection, table)
            if self._committed(connection, table, commit, exists=exists):
                return 0
            schema = self._fitting(connection, table, source.schema, mode)
            if not exists or mode == "replace":
                if exists:
                    self._forget_commits(connection, table)
                connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM {_BLOCK} LIMIT 0")  # noqa: S608
        columns = ", ".join(map(quoted, schema.names))
        rows = 0
        replaced: set[Any] = set()
        for block in source.blocks(rows_per_group(schema)):
            cast = cast_batch(block, schema, place)
            values = None if partition_by is None else partition_values(cast, partition_by, place)
            batch = pa.Table.from_batches([cast])
            with _constraints(place), sql_errors(self.url, ()):
                if mode == "partition" and values is not None:
                    # A value is cleared when it first comes: what is there of it later is this write's own.
                    fresh = [value for value in values.to_pylist() if value not in replaced]
                    replaced.update(fresh)
                    self._clear(connection, name, quoted(str(partition_by)), pa.array(fresh, values.type))
                connection.register(_BLOCK, batch)
                connection.execute(f"INSERT INTO {name} ({columns}) SELECT {columns} FROM {_BLOCK}")  # noqa: S608
            rows += batch.num_rows
        if commit is not None:
            with sql_errors(self.url, ()):
                connection.execute(f"INSERT INTO {_COMMITS} VALUES (?, ?)", [table, commit])  # noqa: S608
        return rows

    def _exists(self, connection: Any, table: str) -> bool:
        relations = self._relations(connection)
        near = next((other for other in relations if other.lower() == table.lower() and other != table), None)
        if near is not None:
            raise DataError(
                f"the database has a table {near!r}, and DuckDB does not tell upper from lower case",
                where=f"{self.url} {table}",
            )
        return table in relations

    def _fitting(self, connection: Any, table: str, rows: pa.Schema, mode: Mode) -> pa.Schema:
        """What rows are cast to before they are written, if the table takes them; `_BLOCK` has such columns then."""
        place, exists = f"{self.url} {table}", self._exists(connection, table)
        schema = _storable(rows, place)
        wanted = _through_duckdb(connection, schema, place)
        if exists and mode != "replace":
            have = reader(connection, f"SELECT * FROM {quoted(table)} LIMIT 0").schema  # noqa: S608
            check_append(have, wanted, place)
        return schema

    def _clear(self, connection: Any, name: str, column: str, values: pa.Array) -> None:
        """Delete the rows that have one of these values."""
        if len(values):
            connection.register(_BLOCK, pa.table({"value": values}))
            connection.execute(f"DELETE FROM {name} WHERE {column} IN (SELECT value FROM {_BLOCK})")  # noqa: S608

    def _committed(self, connection: Any, table: str, commit: str | None, *, exists: bool) -> bool:
        if commit is None:
            return False
        if not exists:  # it was dropped by hand, and its commits with it
            self._forget_commits(connection, table)
        connection.execute(_MAKE_COMMITS)
        found = connection.execute(
            f"SELECT 1 FROM {_COMMITS} WHERE table_name = ? AND commit_id = ?",  # noqa: S608
            [table, commit],
        ).fetchone()
        return found is not None

    def _forget_commits(self, connection: Any, table: str) -> None:
        """What was committed to a table goes with its rows."""
        connection.execute(_MAKE_COMMITS)
        connection.execute(f"DELETE FROM {_COMMITS} WHERE table_name = ?", [table])  # noqa: S608


def _check(table: str, mode: Mode, schema: pa.Schema, partition_by: str | None) -> None:
    """What is refused without a look into the file."""
    check_write(table, mode, schema, partition_by)
    if len({name.lower() for name in schema.names}) < len(schema.names):
        raise DataError("two columns differ only in case, which DuckDB does not tell apart", where=table)


def _state(path: Path) -> tuple[int, bytes]:
    """Size and headers of a database file. The headers say what its state is: a checkpoint changes them."""
    with storage_errors(path, "read"), path.open("rb") as file:
        return path.stat().st_size, file.read(3 * 4_096)


def _shrink(path: Path, size: int, headers: bytes) -> None:
    """Give back what an undone write added to the file, which DuckDB keeps: after a full disk that is all there was.

    Safe only while the headers are those from before the write (then nothing refers to what lies behind the old
    end), and nobody has the file open.
    """
    with contextlib.suppress(OSError, duckdb.Error):
        # Settings that no open database can have: this fails if the process has one of the file.
        duckdb.connect(
            str(path), read_only=True, config={"temp_directory": f"/nowhere-{uuid.uuid4()}"}
        ).close()
        with path.open("r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock that DuckDB takes
            if path.stat().st_size > size and file.read(len(headers)) == headers:
                file.truncate(size)


@contextmanager
def _constraints(where: str) -> Iterator[None]:
    try:
        yield
    except WarehouseError as error:
        if isinstance(error.__cause__, duckdb.ConstraintException | duckdb.ConversionException):
            raise DataError(f"rows do not fit the table: {error.message}", where=where) from error
        raise


def _storable(schema: pa.Schema, where: str) -> pa.Schema:
    """Types that DuckDB would change without a word, changed here: a value that does not fit is then an error.

    Raises:
        DataError: A column has durations, which DuckDB makes intervals of months, days and microseconds.
    """

    def of(kind: pa.DataType, name: str) -> pa.DataType:
        if pa.types.is_timestamp(kind) and kind.tz is not None:  # kept in microseconds, always UTC
            return pa.timestamp("us", "UTC")
        if pa.types.is_duration(kind):
            raise DataError(
                f"column {name!r} is of type {kind}, which DuckDB does not have",
                where=where,
                hint="Write it as an int64 of microseconds",
            )
        if pa.types.is_large_list(kind):
            kind = pa.list_(kind.value_type)
        return with_inner(kind, lambda inner: of(inner, name))

    return pa.schema([pa.field(field.name, of(field.type, field.name)) for field in plain(schema)])


def _through_duckdb(connection: Any, schema: pa.Schema, where: str) -> pa.Schema:
    """The schema that a reader gets back."""
    connection.register(_BLOCK, schema.empty_table())
    try:
        stored = reader(connection, f"SELECT * FROM {_BLOCK} LIMIT 0").schema  # noqa: S608
    except (duckdb.NotImplementedException, pa.ArrowException) as error:
        raise DataError(f"DuckDB cannot hold these columns: {error}", where=where) from error
    return pa.schema(
        [new if not pa.types.is_null(old.type) else old for new, old in zip(stored, schema, strict=True)]
    )
