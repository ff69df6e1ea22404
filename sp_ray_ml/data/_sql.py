"""DuckDB as the engine of queries: read-only SQL streamed as Arrow, its errors told in ours."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import duckdb
import pyarrow as pa

from sp_ray_ml._remote import protocol
from sp_ray_ml.config import near_match
from sp_ray_ml.data._parquet_files import Layout, TableFiles
from sp_ray_ml.data._store import RemoteStore
from sp_ray_ml.data._where import as_sql, conditions, quoted
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.data.warehouse import no_table
from sp_ray_ml.errors import ColumnNotFoundError, LockedError, StorageError, WarehouseError

__all__ = [
    "SqlSource",
    "file_list",
    "memory_connection",
    "named_tables",
    "parquet_connection",
    "prepare",
    "query_text",
    "reader",
    "sql_errors",
]

_BATCH_ROWS = 65_536
_MOST_DIGITS = 38


def prepare(connection: Any) -> Any:
    """Settings of every connection of ours: times in UTC, and no table that is really a Python variable."""
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("PRAGMA disable_progress_bar")  # Jupyter without ipywidgets refuses the setting
    return connection


def memory_connection() -> Any:
    """A database in memory, which goes on on the disk where there is more."""
    return prepare(duckdb.connect(":memory:", config={"temp_directory": tempfile.gettempdir()}))


def file_list(files: Sequence[str]) -> str:
    """Files as `read_parquet` takes them."""
    return f"[{', '.join(_text(_unglobbed(file)) for file in files)}]"


def named_tables(query: str, tables: Sequence[str]) -> list[str]:
    """The tables that a query may read: those whose name is somewhere in it. Each view costs a look into a file."""
    text = query.lower().replace('""', '"')
    return [name for name in tables if name.lower() in text]


def parquet_connection(tables: Mapping[str, TableFiles]) -> Any:
    """A database in memory with a view of each table's Parquet files, into which columns and filters are pushed."""
    connection = memory_connection()
    for name, table in tables.items():
        listed = file_list(_registered(connection, table))
        hive, columns = f"hive_partitioning = {str(table.is_partitioned).lower()}", "*"
        with sql_errors(name, ()):
            if table.layout is not None:
                schema = table.layout.schema
                columns = ", ".join(map(quoted, schema.names))
                hive += f", hive_types = {{{_text(table.layout.column)}: {_type(connection, table.layout)}}}"
            wide = [column for column in table.schema if _has_too_many_digits(column.type)]
            refused = ", ".join(map(_refusal, wide))
            connection.execute(
                f"CREATE VIEW {quoted(name)} AS SELECT *{f' REPLACE ({refused})' if wide else ''} FROM "  # noqa: S608
                f"(SELECT {columns} FROM read_parquet({listed}, {hive}))"
            )
    return connection


def _has_too_many_digits(kind: pa.DataType) -> bool:
    """Whether DuckDB would make floats of a column's decimals."""
    if pa.types.is_decimal(kind):
        return bool(kind.precision > _MOST_DIGITS)
    return any(_has_too_many_digits(kind.field(index).type) for index in range(kind.num_fields))


def _refusal(field: pa.Field) -> str:
    """In place of a column: an error for the query that reads it, and none for others."""
    said = f"column {field.name!r} of type {field.type} has more than {_MOST_DIGITS} digits, which DuckDB's decimals do not have; read the table by its name"
    return f"CAST(error({_text(said)}) AS DOUBLE) AS {quoted(field.name)}"


def _type(connection: Any, layout: Layout) -> str:
    """What `hive_types` calls the type of the column that a table is partitioned by."""
    connection.register("_sp_ray_ml_layout", layout.schema.empty_table().select([layout.column]))
    described = connection.execute("DESCRIBE _sp_ray_ml_layout").fetchone()
    connection.unregister("_sp_ray_ml_layout")
    kind = str(described[1])
    return "TIMESTAMPTZ" if kind == "TIMESTAMP WITH TIME ZONE" else kind


def _registered(connection: Any, table: TableFiles) -> list[str]:
    """The files as DuckDB finds them: on other stores than disks through fsspec's file system."""
    if isinstance(table.store, RemoteStore):
        fs = table.store.fs
        if not connection.filesystem_is_registered(protocol(fs)):
            connection.register_filesystem(fs)
        return [fs.unstrip_protocol(path) for path in table.paths]
    return table.paths


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _unglobbed(path: str) -> str:
    """The path as a pattern that matches only itself."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def query_text(connection: Any, sql: str, url: str) -> str:
    """The one `SELECT` that `sql` is.

    Raises:
        WarehouseError: It is no SQL, several statements, or one that is not a `SELECT`.
    """
    with sql_errors(url, ()):
        statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise WarehouseError(f"a query is one statement, this is {len(statements)}", where=url)
    kind = statements[0].type.name
    if kind != "SELECT":
        raise WarehouseError(
            f"a query only reads, this would {kind.replace('_', ' ')}",
            where=url,
            hint="Use SELECT, or WITH … SELECT",
        )
    text = sql.encode()  # tokens are at positions of bytes
    ends = [at for at, _ in duckdb.tokenize(sql) if text[at : at + 1] == b";"]
    return text[: ends[0]].decode() if ends else sql


def reader(connection: Any, sql: str, values: Sequence[Any] = (), rows: int = _BATCH_ROWS) -> Any:
    """Run a query and give its result as a `pyarrow.RecordBatchReader` that has only begun."""
    result = connection.execute(sql, list(values))
    # DuckDB 1.4 has only the older name.
    return (
        result.to_arrow_reader(rows)
        if hasattr(result, "to_arrow_reader")
        else result.fetch_record_batch(rows)
    )


class SqlSource(Source):
    """The rows of a query.

    Args:
        query: A table's name or one SQL `SELECT`.
        connect: Opens a connection; one a pass, closed at its end.
        url: The warehouse, for messages.
        tables: Its tables, for messages.
        columns: The columns to read, None for all.
        where: Conditions that rows must meet.
        relation: What `query` is called in SQL, if it is a table's name; None if it is SQL.
        count: Whether to count the rows, where that is cheap.
        opened: A connection to plan with, for who has one open: opening one takes as long as reading a small table.
    """

    def __init__(
        self,
        query: str,
        connect: Callable[[], Any],
        *,
        url: str,
        tables: Sequence[str],
        columns: Sequence[str] | None = None,
        where: Sequence[tuple[str, str, Any]] = (),
        relation: str | None = None,
        count: bool = False,
        opened: Any = None,
    ) -> None:
        self._query, self._connect, self._url, self._tables = query, connect, url, tables
        self._where, self._relation, self._count = tuple(where), relation, count
        name = query if relation else "query"
        num_rows = None
        planning = closing(connect()) if opened is None else nullcontext(opened)
        with planning as connection, sql_errors(url, tables):
            whole = f"FROM {relation}" if relation else query_text(connection, query, url)
            inner = relation or f"({whole}\n)"
            full = reader(connection, f"SELECT * FROM {inner} AS q LIMIT 0").schema.remove_metadata()  # noqa: S608
            if count and not where:
                num_rows = connection.execute(f"SELECT count(*) FROM {inner}").fetchone()[0]  # noqa: S608
        names = require_columns(full, columns, name) if columns is not None else full.names
        clause, self._values = as_sql(conditions(where, full, name))
        picked = ", ".join(map(quoted, names))
        # A query of the user's own is run as it is where it can be, so that its ORDER BY is the stream's.
        self._sql = whole if columns is None and not where else f"SELECT {picked} FROM {inner} AS q{clause}"  # noqa: S608
        schema = pa.schema([full.field(column) for column in names])
        super().__init__(name, schema, self._stream, num_rows=num_rows)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        with closing(self._connect()) as connection:
            with sql_errors(self._url, self._tables):
                stream = reader(connection, self._sql, self._values)
            try:
                with stream:
                    yield from stream
            except (pa.ArrowException, OSError) as error:
                raise WarehouseError(f"the query failed: {_first_line(error)}", where=self._url) from error

    def select(self, columns: Sequence[str]) -> Source:
        require_columns(self.schema, columns, self.name)
        return SqlSource(
            self._query,
            self._connect,
            url=self._url,
            tables=self._tables,
            columns=columns,
            where=self._where,
            relation=self._relation,
            count=self._count,
        )


# --- errors -----------------------------------------------------------------------------------------------------

_NO_TABLE = re.compile(r"(?:Table|View) with name (.+?) does not exist", re.DOTALL)
_NO_COLUMN = re.compile(r'(?:Referenced column|does not have a column named|column named) "([^"]+)"')
_HOLDER = re.compile(r"Conflicting lock is held in (.+?) \(PID (\d+)\)")
_REASONS = {
    "No space left on device": "the disk is full",
    "Disk quota exceeded": "the disk quota is used up",
    "File too large": "the file would be larger than the limit",
    "Read-only file system": "the file system is read-only",
    "Permission denied": "permission denied",
}


def _first_line(error: BaseException) -> str:
    text = str(error).strip().split("\n", 1)[0]
    return re.sub(r"^(\w+ )+Error: ", "", text).rstrip(".")


@contextmanager
def sql_errors(url: str, tables: Sequence[str]) -> Iterator[None]:
    """Tell DuckDB's errors in ours.

    Args:
        url: The warehouse, for messages.
        tables: Its tables, for near matches.
    """
    try:
        yield
    except duckdb.Error as error:
        raise _told(error, url, tables) from error


def _told(error: Exception, url: str, tables: Sequence[str]) -> StorageError | ColumnNotFoundError | Any:
    text = str(error)
    if holder := _HOLDER.search(text):
        return LockedError(
            f"another process is using the database (process {holder[2]}, {holder[1]})",
            where=url,
            hint=f"Close it there, or end that process, and try again: ps -p {holder[2]}",
        )
    if "Could not set lock" in text:
        return LockedError(
            "another process is using the database", where=url, hint="Close it there, and try again"
        )
    if "different configuration" in text:
        return LockedError(
            "this process has the database open in another way",
            where=url,
            hint="Close that connection, or finish reading, and try again",
        )
    if said := next((words for words in _REASONS if words in text), None):
        doing = "open" if "Cannot open file" in text else "write"
        hint = "Free some room: df -h" if said in {"No space left on device", "Disk quota exceeded"} else None
        return StorageError(f"cannot {doing}: {_REASONS[said]}", where=url, hint=hint)
    if isinstance(error, duckdb.TransactionException) or "write-write conflict" in text or "Conflict" in text:
        return LockedError(
            f"another writer was there first: {_first_line(error)}", where=url, hint="Try again"
        )
    if isinstance(error, duckdb.CatalogException) and (missing := _NO_TABLE.search(text)):
        return no_table(missing[1], tables, url)
    if isinstance(error, duckdb.BinderException) and (missing := _NO_COLUMN.search(text)):
        have = re.findall(r'"([^"]+)"', text.partition("andidate bindings:")[2].split("\n")[0])
        near = near_match(missing[1], [name.rpartition(".")[2] for name in have])
        return ColumnNotFoundError(f"no column {missing[1]!r}{near}", where=url)
    if isinstance(error, duckdb.ParserException):
        return WarehouseError(f"not SQL that DuckDB reads: {_first_line(error)}", where=url)
    if isinstance(error, duckdb.OutOfMemoryException):
        return WarehouseError("not enough memory for the query", where=url, hint="Read fewer columns or rows")
    return WarehouseError(_first_line(error), where=url)
