"""Parquet files as a warehouse: a folder, or any URL that fsspec reads (`s3://bucket/folder`, `gs://…`).

A table is a file `NAME.parquet` or a folder `NAME/` of files (folders `key=value` in it are columns). Tables
written here are folders with `_manifests/`, which name the live files and the ids of the commits: a write makes new
files, then the next manifest at once, then removes what is no part of the table any more.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._manifest import Manifest, clean, live_files, read_manifest
from sp_ray_ml.data._parquet_files import (
    FinishedFiles,
    Layout,
    ParquetSource,
    TableFiles,
    find_files,
    near_file,
    rows_of,
)
from sp_ray_ml.data._parquet_parts import Parts, check_layout, partition_of
from sp_ray_ml.data._schema import cast_batch, check_append, plain, rows_per_group
from sp_ray_ml.data._sql import SqlSource, named_tables, parquet_connection
from sp_ray_ml.data._store import LocalStore, store_at
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.data.warehouse import Mode, Warehouse, Where, check_write, is_sql, no_table
from sp_ray_ml.errors import DataError, WarehouseError

__all__ = ["ParquetWarehouse"]

_LOOKS = 16


class ParquetWarehouse(Warehouse):
    """See the module. SQL is DuckDB's, over views of the files.

    Args:
        path: The folder, or its URL.
    """

    scheme = "parquet"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.store = store_at(path)
        self.url = f"parquet://{self.store.url}" if self.store.is_local else self.store.url

    def tables(self) -> list[str]:
        children = self._children()
        folders = [name for name, is_folder in children.items() if is_folder]
        with ThreadPoolExecutor(_LOOKS) as pool:
            live = [
                name
                for name, found in zip(folders, pool.map(self._folder, folders), strict=True)
                if found is not None
            ]
        return sorted({*live, *_single(children)})

    def _children(self) -> dict[str, bool]:
        """What may be tables; names that begin with a dot or a line are none."""
        children = self.store.children()
        if not children and isinstance(self.store, LocalStore) and not self.store.path.is_dir():
            path = self.store.path
            what = "this is a file, not a folder" if path.exists() else "no such folder"
            raise WarehouseError(
                f"{what}{near_file(path)}",
                where=str(path),
                hint="A warehouse is a folder of Parquet files or a DuckDB file. To make one up: sp-ray demo demo/warehouse",
            )
        return {name: is_folder for name, is_folder in children.items() if not name.startswith((".", "_"))}

    def source(self, query: str, *, columns: Sequence[str] | None = None, where: Where = ()) -> Source:
        found = self._find(query)
        if found is not None:
            return ParquetSource(query, found, columns=columns, where=where)
        tables = self.tables()
        if not is_sql(query):
            raise no_table(query, tables, self.url)
        used = {name: self._files(name) for name in named_tables(query, tables)}
        return SqlSource(
            query, lambda: parquet_connection(used), url=self.url, tables=tables, columns=columns, where=where
        )

    def fingerprint(self, table: str) -> str:
        names, found = [table], self._find(table)
        if found is None:
            tables = self.tables()
            if not is_sql(table):
                raise no_table(table, tables, self.url)
            names = named_tables(table, tables)
        digest = hashlib.sha256(table.encode())
        for name in names:
            files = found or self._files(name)
            for file, mark in files.marks.items():
                digest.update(f"{file}\0{mark}\n".encode())
        return digest.hexdigest()[:32]

    def _folder(self, table: str) -> TableFiles | None:
        found = live_files(self.store, table)
        return found if found.files else None

    def _find(self, table: str) -> TableFiles | None:
        """The files of a table; None if there is none of that name."""
        if table.startswith((".", "_")) or table not in (children := self._children()) | dict.fromkeys(
            _single(children)
        ):
            return None
        if children.get(table) and (found := self._folder(table)):
            return found
        return self._single_file(table) if table in _single(children) else None

    def _single_file(self, table: str) -> TableFiles:
        return TableFiles(self.store, [f"{table}.parquet"])

    def _files(self, table: str) -> TableFiles:
        found = self._find(table)
        if found is None:  # it was there a moment ago
            raise no_table(table, [], self.url)
        return found

    def check(
        self, table: str, schema: pa.Schema, *, mode: Mode = "replace", partition_by: str | None = None
    ) -> None:
        check_write(table, mode, schema, partition_by)
        found = None
        if mode != "replace" and (found := self._folder(table)) is None:
            single = self._single_file(table)
            found = single if all(single.marks.values()) else None
        stored = self._stored_schema(table, schema, found)
        check_layout(stored, _layout_column(found, mode, partition_by), f"{self.url}/{table}")

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
        check_write(table, mode, source.schema, partition_by)
        place = f"{self.url}/{table}"
        with self.store.lock(table, f"table {table}"):
            before = self._state(table)
            if commit is not None and commit in before.commits:
                return 0
            grows = mode != "replace" and bool(before.files)
            found = self._files(table) if grows else None
            schema = self._stored_schema(table, source.schema, found)
            partition_by = _layout_column(found, mode, partition_by)
            layout = None if partition_by is None else Layout(partition_by, schema)
            kept = dict(before.files) if grows else {}
            # What was committed to a table goes with its rows.
            commits = [*(before.commits if grows else []), *([] if commit is None else [commit])]
            with Parts(self.store, table, before.version + 1, schema, partition_by) as parts:
                if (
                    isinstance(source, FinishedFiles)
                    and partition_by is None
                    and source.schema.equals(schema)
                ):
                    for file, count in source.rows.items():
                        parts.take(source.store, file, count)
                else:
                    for block in source.blocks(rows_per_group(schema)):
                        parts.write(_no_null_vectors(cast_batch(block, schema, place), place))
                rows, replaced = parts.num_rows, parts.partitions
                if mode == "partition" and grows:
                    if before.layout == layout:
                        kept = {path: n for path, n in kept.items() if partition_of(path) not in replaced}
                    else:  # laid out in another way so far: every row finds its new place
                        for batch in ParquetSource(table, self._files(table)).batches():
                            parts.write(batch, leave_out=replaced)
                        kept = {}
                parts.finish(needed=not kept)
                after = Manifest(before.version + 1, {**kept, **parts.files}, commits, layout)
                after.commit(self.store, table)
            clean(self.store, table, after)
        return rows

    def _state(self, table: str) -> Manifest:
        """The table's manifest. What lies there without one is given one, so that new files are not read before
        they are committed.
        """
        manifest = read_manifest(self.store, table)
        if manifest is None:
            files = {f.removeprefix(f"{table}/"): f for f in find_files(self.store, table)}
            if not files and self.store.mark(single := f"{table}.parquet"):
                files = {f"../{single}": single}
            manifest = Manifest(0, {name: rows_of(self.store, file) for name, file in files.items()})
            manifest.commit(self.store, table)
        elif self.store.is_local:  # before more is written to the disk
            clean(self.store, table, manifest)
        return manifest

    def _stored_schema(self, table: str, rows: pa.Schema, found: TableFiles | None) -> pa.Schema:
        """The columns after rows were added to these files, or with None replaced the table."""
        where = f"{self.url}/{table}"
        wanted = _through_parquet(plain(rows), where)
        if found is None:
            return wanted
        if found.is_partitioned and found.layout is None:
            raise DataError(
                "the table's folder is partitioned (key=value) by another program, and is only read, never added to",
                where=where,
                hint="Write to another table, or use mode replace",
            )
        have = plain(ParquetSource(table, found).schema)
        check_append(have, wanted, where)
        return have


def _layout_column(found: TableFiles | None, mode: Mode, partition_by: str | None) -> str | None:
    """The column by which a table of these files is partitioned after a write."""
    if found is None or mode == "partition":
        return partition_by
    return None if found.layout is None else found.layout.column


def _single(children: Mapping[str, bool]) -> list[str]:
    """Tables that are one file."""
    return [
        name.removesuffix(".parquet")
        for name, is_folder in children.items()
        if name.endswith(".parquet") and not is_folder
    ]


def _through_parquet(schema: pa.Schema, where: str) -> pa.Schema:
    """The schema that a reader gets back (seconds become milliseconds, say)."""
    schema = pa.schema([pa.field(field.name, _unfixed(field.type)) for field in schema])
    buffer = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(buffer, schema).close()
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
