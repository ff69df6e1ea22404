"""A folder of Parquet files as a warehouse.

A table is a file `NAME.parquet` or a folder `NAME/` of files (folders `key=value` in it are columns). Tables
written here are folders with a `_manifest.json`, which names the live files and the ids of the commits: a write
makes new files, then replaces the manifest at once, then removes what the manifest does not name.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._manifest import Manifest, live_files, read_manifest
from sp_ray_ml.data._parquet_files import Layout, ParquetSource, TableFiles, find_files, near_file
from sp_ray_ml.data._parquet_parts import Parts
from sp_ray_ml.data._schema import cast_batch, check_append, plain, rows_per_group
from sp_ray_ml.data._sql import SqlSource, parquet_connection
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.data.warehouse import Mode, Warehouse, Where, check_write, is_sql, no_table
from sp_ray_ml.errors import DataError, WarehouseError
from sp_ray_ml.storage import Lock, storage_errors

__all__ = ["ParquetWarehouse"]

_LOCK = ".lock"


class ParquetWarehouse(Warehouse):
    """See the module. SQL is DuckDB's, over views of the files.

    Args:
        path: The folder.
    """

    scheme = "parquet"

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser()
        self.url = f"parquet://{self.path}"

    def tables(self) -> list[str]:
        if not self.path.is_dir():
            what = "this is a file, not a folder" if self.path.exists() else "no such folder"
            raise WarehouseError(
                f"{what}{near_file(self.path)}",
                where=str(self.path),
                hint="A warehouse is a folder of Parquet files or a DuckDB file. To make one up: sp-ray demo demo/warehouse",
            )
        names = set()
        with storage_errors(self.path, "read"):
            for entry in self.path.iterdir():
                if entry.name.startswith((".", "_")):
                    continue
                if entry.is_dir():
                    names |= {entry.name} if live_files(entry).files else set()
                elif entry.suffix == ".parquet":
                    names.add(entry.stem)
        return sorted(names)

    def source(self, query: str, *, columns: Sequence[str] | None = None, where: Where = ()) -> Source:
        tables = self.tables()
        if query in tables:
            return ParquetSource(query, self._files(query), columns=columns, where=where)
        if not is_sql(query):
            raise no_table(query, tables, self.url)
        # Only what the query can name becomes a view: each costs a look into a file.
        used = {name: self._files(name) for name in _named(query, tables)}
        return SqlSource(
            query, lambda: parquet_connection(used), url=self.url, tables=tables, columns=columns, where=where
        )

    def fingerprint(self, table: str) -> str:
        tables = self.tables()
        names = [table]
        if table not in tables:
            if not is_sql(table):
                raise no_table(table, tables, self.url)
            names = _named(table, tables)
        digest = hashlib.sha256(table.encode())
        for name in names:
            for file in self._files(name).files:
                with storage_errors(file, "read"):
                    stat = file.stat()
                digest.update(f"{file.relative_to(self.path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]

    def _files(self, table: str) -> TableFiles:
        folder = self.path / table
        if folder.is_dir() and (found := live_files(folder)).files:
            return found
        return TableFiles([self.path / f"{table}.parquet"])

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
        check_write(table, mode, source, partition_by)
        folder, place = self.path / table, f"{self.url}/{table}"
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with Lock(folder / _LOCK, f"table {table}"):
            before = self._state(table)
            if commit is not None and commit in before.commits:
                return 0
            grows = mode != "replace" and bool(before.files)
            schema = self._stored_schema(table, source, grows=grows)
            if mode == "append" and grows:
                partition_by = None if before.layout is None else before.layout.column
            layout = None if partition_by is None else Layout(partition_by, schema)
            self._clean(table, before)
            kept = before.files if grows else {}
            # What was committed to a table goes with its rows.
            commits = [*(before.commits if grows else []), *([] if commit is None else [commit])]
            with Parts(folder, before.version + 1, schema, partition_by) as parts:
                for block in source.blocks(rows_per_group(schema)):
                    parts.write(_no_null_vectors(cast_batch(block, schema, place), place))
                rows, replaced = parts.num_rows, parts.segments
                if mode == "partition" and grows:
                    if before.layout == layout:
                        kept = {path: n for path, n in kept.items() if path.split("/")[0] not in replaced}
                    else:  # laid out in another way so far: every row finds its new place
                        for batch in ParquetSource(table, self._files(table)).batches():
                            parts.write(batch, leave_out=replaced)
                        kept = {}
                parts.finish(needed=not kept)
                # Files without a manifest are read as they lie there: before the first new one appears it is said
                # which they were.
                if read_manifest(folder) is None:
                    before.write(folder)
                new = parts.publish()
            after = Manifest(before.version + 1, {**kept, **new}, commits, layout)
            after.write(folder)
            self._clean(table, after)
        return rows

    def _state(self, table: str) -> Manifest:
        """The table's manifest, or one that says what lies there without."""
        folder, single = self.path / table, self.path / f"{table}.parquet"
        manifest = read_manifest(folder)
        if manifest is not None:
            return manifest
        files = find_files(folder) or ([single] if single.is_file() else [])
        rows: dict[str, int] = {}
        version = 0
        for file in files:
            name = f"../{file.name}" if file == single else file.relative_to(folder).as_posix()
            with storage_errors(file, "read"):
                rows[name] = int(pq.read_metadata(file).num_rows)
            if number := re.match(r"part-(\d+)-", file.name):  # never give a name that is taken
                version = max(version, int(number[1]))
        return Manifest(version, rows)

    def _stored_schema(self, table: str, source: Source, *, grows: bool) -> pa.Schema:
        where = f"{self.url}/{table}"
        wanted = _through_parquet(plain(source.schema), where)
        if not grows:
            return wanted
        found = self._files(table)
        if found.is_partitioned and found.layout is None:
            raise DataError(
                "the table's folder is partitioned (key=value) by another program, and is only read, never added to",
                where=where,
                hint="Write to another table, or use mode replace",
            )
        have = plain(ParquetSource(table, found).schema)
        check_append(have, wanted, where)
        return have

    def _clean(self, table: str, manifest: Manifest) -> None:
        """Remove what is no part of the table: files of writers that were killed, and those that were replaced."""
        folder, single = self.path / table, self.path / f"{table}.parquet"
        with contextlib.suppress(OSError):  # what stays is not read, and goes with the next write
            for scratch in folder.glob(".part-*.tmp"):
                scratch.unlink(missing_ok=True)
            if read_manifest(folder) is None:
                return
            for file in find_files(folder):
                if file.relative_to(folder).as_posix() not in manifest.files:
                    file.unlink(missing_ok=True)
                    _remove_empty(file.parent, folder)
            if single.is_file() and f"../{single.name}" not in manifest.files:
                single.unlink()


def _named(query: str, tables: Sequence[str]) -> list[str]:
    """The tables that a query may read: those whose name is somewhere in it."""
    text = query.lower().replace('""', '"')
    return [name for name in tables if name.lower() in text]


def _remove_empty(folder: Path, top: Path) -> None:
    while folder != top and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _through_parquet(schema: pa.Schema, where: str) -> pa.Schema:
    """The schema that a reader gets back (seconds become milliseconds, say)."""
    schema = pa.schema([pa.field(field.name, _unfixed(field.type)) for field in schema])
    buffer = pa.BufferOutputStream()
    try:
        pq.write_table(schema.empty_table(), buffer)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise DataError(f"Parquet cannot hold these columns: {error}", where=where) from error
    return pq.read_schema(pa.BufferReader(buffer.getvalue())).remove_metadata()


def _unfixed(kind: pa.DataType, *, nested: bool = False) -> pa.DataType:
    """The type with lists of fixed size only at its top: further in, Arrow cannot read back what it wrote of them."""
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _unfixed(f.type, nested=True)) for f in kind])
    if pa.types.is_fixed_size_list(kind) and not nested:
        return pa.list_(_unfixed(kind.value_type, nested=True), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_unfixed(kind.value_type, nested=True))
    return kind


def _no_null_vectors(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_fixed_size_list(column.type) and column.null_count:
            raise DataError(
                f"column {name!r} has nulls among lists of a fixed size, which Arrow cannot read back from Parquet",
                where=where,
                hint="Leave those rows out, fill them with zeros, or make it a list of any size",
            )
    return batch
