"""Parquet files read as one table: found, scanned in bounded memory with columns and conditions pushed down."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from sp_ray_ml._remote import is_remote
from sp_ray_ml.data._store import Store, store_at
from sp_ray_ml.data._where import Condition, as_arrow, as_ray, conditions
from sp_ray_ml.data.source import Source, require_columns
from sp_ray_ml.errors import DataError, StorageError
from sp_ray_ml.storage import storage_errors

__all__ = [
    "SCAN_ROWS",
    "FinishedFiles",
    "Layout",
    "ParquetSource",
    "TableFiles",
    "find_files",
    "near_file",
    "parquet_source",
    "rows_of",
    "went_away",
]

SCAN_ROWS = 65_536
"""Rows that are read from a file at a time."""
_MANY_FILES = 256
_BUFFER_BYTES = 1 << 16
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(store: Store, folder: str) -> list[str]:
    """The Parquet files below a folder, in the order of their paths; hidden ones and those of `_…` are no data, but
    for folders with a value in their name.
    """
    return [
        f"{folder}/{path}" if folder else path
        for path in store.find(folder)
        if path.endswith((".parquet", ".pq")) and not _is_hidden(path)
    ]


def _is_hidden(path: str) -> bool:
    *folders, name = path.split("/")
    return any(part.startswith((".", "_")) for part in (name, *(f for f in folders if "=" not in f)))


def near_file(path: Path) -> str:
    """`"; did you mean X?"` from what lies beside a path that does not exist."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")]
    except OSError:
        return f"; there is no folder {path.parent} either"
    close = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.6)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


@dataclass(frozen=True)
class Layout:
    """How a table that was written here is cut: by the values of one column, in folders `column=value/`.

    Attributes:
        column: The column, which is not in the files.
        schema: Of the whole table.
    """

    column: str
    schema: pa.Schema

    def partitioning(self) -> Any:
        # Nulls are refused when they are written, and text that looks like Hive's null is text.
        return pads.HivePartitioning(pa.schema([self.schema.field(self.column)]), null_fallback="\0")


@dataclass(frozen=True)
class TableFiles:
    """The files of one table.

    Attributes:
        store: Where they are.
        files: Path of every file, in the order of the rows.
        folder: The folder of the table, below which folder names `key=value` are columns; None for a single file.
        num_rows: How many rows all the files have together, where that is known.
        layout: How it is partitioned, if it was written so here.
    """

    store: Store
    files: list[str]
    folder: str | None = None
    num_rows: int | None = None
    layout: Layout | None = None

    @property
    def place(self) -> str:
        """What messages call the table's place."""
        return self.store.place(self.files[0] if self.folder is None else self.folder)

    @property
    def paths(self) -> list[str]:
        """The files in the store's file system."""
        return [self.store.full(file) for file in self.files]

    @cached_property
    def schema(self) -> pa.Schema:
        """The table's columns, or those of its first file where folders have others."""
        if self.layout is not None:
            return self.layout.schema
        with self.store.errors(self.files[0], "read"):
            try:
                return pq.read_schema(self.paths[0], filesystem=self.store.arrow)
            except pa.ArrowInvalid as error:
                raise _damaged(self, error) from error

    @property
    def marks(self) -> dict[str, str]:
        """Of each file, text that changes when it is written anew; empty of one that went away."""
        there = {} if self.folder is None else self.store.find(self.folder)
        top = f"{self.folder}/" if self.folder else ""
        return {file: there.get(file.removeprefix(top)) or self.store.mark(file) for file in self.files}

    @property
    def is_partitioned(self) -> bool:
        """Whether values are in folder names (`country=de/`), as Hive and Spark write them."""
        return bool(self.folder_columns)

    @property
    def folder_columns(self) -> set[str]:
        """The columns whose values are in folder names."""
        if self.layout is not None:
            return {self.layout.column}
        top = f"{self.folder}/" if self.folder else ""
        return {
            part.partition("=")[0]
            for file in self.files
            if self.folder is not None and file.startswith(top)
            for part in file.removeprefix(top).split("/")[:-1]
            if "=" in part
        }


def _damaged(table: TableFiles, error: Exception) -> StorageError:
    return StorageError(f"not Parquet, or damaged: {error}", where=table.place)


def went_away(name: str) -> StorageError:
    """The error when a file is missing that a table had when it was opened."""
    return StorageError(
        "a file of the table went away: it was replaced or removed while it was read",
        where=name,
        hint="Read it again",
    )


class ParquetSource(Source):
    """Rows of some Parquet files.

    Args:
        name: What messages call it.
        table: The files.
        columns: The columns to read, None for all.
        where: Conditions that rows must meet.
    """

    def __init__(
        self,
        name: str,
        table: TableFiles,
        *,
        columns: Sequence[str] | None = None,
        where: Sequence[tuple[str, str, Any]] = (),
    ) -> None:
        self._name, self._table, self._where = name, table, tuple(where)
        with table.store.errors(table.files[0], "read"):
            full = self._dataset().schema.remove_metadata()
        self._full = full
        self._columns = require_columns(full, columns, name) if columns is not None else full.names
        self._conditions: list[Condition] = conditions(where, full, name)
        schema = pa.schema([full.field(column) for column in self._columns])
        num_rows = table.num_rows
        if num_rows is None and len(table.files) <= _MANY_FILES:
            num_rows = sum(rows_of(table.store, file) for file in table.files)
        super().__init__(name, schema, self._stream, num_rows=None if where else num_rows)

    def _dataset(self) -> Any:
        partitioning, table = None, self._table
        if table.layout is not None:
            partitioning = table.layout.partitioning()
        elif table.is_partitioned:
            partitioning = pads.HivePartitioning.discover(infer_dictionary=False)
        try:
            return pads.dataset(
                table.paths,
                schema=table.layout.schema if table.layout is not None else None,
                format="parquet",
                filesystem=table.store.arrow,
                partitioning=partitioning,
                partition_base_dir=table.store.full(str(table.folder)) if partitioning is not None else None,
            )
        except FileNotFoundError as error:
            raise went_away(self._name) from error
        except pa.ArrowInvalid as error:
            raise _damaged(table, error) from error

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Errors of reading, told with the table's name."""
        # For files here, as the file that is read is not known.
        here = storage_errors(self._name, "read") if self._table.store.is_local else nullcontext()
        with here, self._table.store.errors(self._table.folder or self._table.files[0], "read"):
            try:
                yield
            except FileNotFoundError as error:
                raise went_away(self._name) from error
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise DataError(f"cannot be read: {error}", where=self._name) from error

    def _stream(self) -> Iterator[pa.RecordBatch]:
        with self._reading():
            if self._conditions or self._table.is_partitioned or not self._table.store.is_local:
                yield from self._scanned(self._dataset())
            else:
                yield from self._in_order()

    def to_arrow(self) -> pa.Table:
        # All of it is wanted in memory: Arrow may read ahead as far as it likes.
        with self._reading():
            table = self._dataset().to_table(columns=self._columns, filter=as_arrow(self._conditions))
            return table.cast(self.schema)

    def _in_order(self) -> Iterator[pa.RecordBatch]:
        """One file after the other, decoded batch by batch; Arrow's scanner decodes whole row groups at a time."""
        for file in self._table.paths:
            with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
                own = opened.schema_arrow
                if all(
                    name in own.names and own.field(name).equals(self._full.field(name))
                    for name in self._columns
                ):
                    for batch in opened.iter_batches(SCAN_ROWS, columns=self._columns):
                        yield batch.select(self._columns)
                    continue
            # It lacks a column, or has one in another type.
            yield from self._scanned(pads.dataset([file], schema=self._full, format="parquet"))

    def _scanned(self, dataset: Any) -> Iterator[pa.RecordBatch]:
        # The defaults read 16 batches and 4 files ahead: far more memory, no more speed on a few cores. Over a
        # network the parts of a row group that are needed are asked for at once, and the next file meanwhile.
        near = self._table.store.is_local
        options = pads.ParquetFragmentScanOptions(use_buffered_stream=near, pre_buffer=not near)
        scanner = dataset.scanner(
            columns=self._columns,
            filter=as_arrow(self._conditions),
            batch_size=SCAN_ROWS,
            batch_readahead=4,
            fragment_readahead=1 if near else 4,
            fragment_scan_options=options,
            cache_metadata=False,
        )
        with scanner.to_reader() as reader:
            yield from reader

    def select(self, columns: Sequence[str]) -> Source:
        require_columns(self.schema, columns, self.name)
        return ParquetSource(self._name, self._table, columns=columns, where=self._where)

    def pieces(self, rows: int) -> Sequence[Source] | None:
        from sp_ray_ml.data._parquet_pieces import parquet_pieces

        if self._conditions:
            return None
        return parquet_pieces(self._name, self.schema, self._dataset(), rows)

    def mark(self) -> str:
        digest = hashlib.sha256()
        for file, mark in self._table.marks.items():
            digest.update(f"{file}\0{mark}\n".encode())
        return digest.hexdigest()[:32]

    def to_ray(self) -> Any:
        """Read by Ray's own workers, each its files and row groups, with the same push-down."""
        import ray.data
        from ray.data.datasource import Partitioning

        table, layout = self._table, self._table.layout
        base = Partitioning(
            "hive", base_dir=table.store.full(str(table.folder)), filesystem=table.store.arrow
        )
        dataset = ray.data.read_parquet(
            table.paths,
            filesystem=None if table.store.is_local else table.store.arrow,
            partitioning=base if table.is_partitioned else None,
            file_extensions=None,
        )
        if table.is_partitioned:  # Ray reads values of folders as text
            fields = [field for field in self._full if field.name in table.folder_columns]
            null = _HIVE_NULL if layout is None else None
            dataset = dataset.map_batches(
                _typed, batch_size=None, batch_format="pyarrow", fn_kwargs={"fields": fields, "null": null}
            )
        if (expression := as_ray(self._conditions)) is not None:
            dataset = dataset.filter(expr=expression)
        return dataset.select_columns(self._columns)


class FinishedFiles(ParquetSource):
    """Files that nobody will write to again: a warehouse may take them as they are, where it keeps such files itself.

    Args:
        name: What messages call them.
        table: The files, whole ones of one schema.
        rows: How many rows each file has.
    """

    def __init__(self, name: str, table: TableFiles, rows: Mapping[str, int]) -> None:
        super().__init__(name, table)
        self.store, self.rows = table.store, dict(rows)


def _typed(table: pa.Table, fields: Sequence[pa.Field], null: str | None) -> pa.Table:
    """The rows with values of folders in the types of their columns; the text `null` is no value."""
    for field in fields:
        values = table[field.name]
        if null is not None and pa.types.is_string(values.type):
            values = pc.if_else(pc.equal(values, null), pa.scalar(None, values.type), values)
        table = table.set_column(table.schema.get_field_index(field.name), field, values.cast(field.type))
    return table


def rows_of(store: Store, file: str) -> int:
    """How many rows a file has, as its end says."""
    with store.errors(file, "read"):
        return int(pq.read_metadata(store.full(file), filesystem=store.arrow).num_rows)


def parquet_source(path: str | os.PathLike[str], name: str | None = None) -> Source:
    """A file or a folder of files, here or at a URL, as a `Source`.

    Raises:
        StorageError: Nothing is there, or no Parquet.
    """
    from sp_ray_ml.data._manifest import live_files

    text = os.fspath(path).rstrip("/") or "/"
    if is_remote(text):
        scheme, _, rest = text.partition("://")
        parent, _, last = rest.rpartition("/")
        store, near = store_at(f"{scheme}://{parent}" if parent else text), ""
        last = last if parent else ""
        single = text.endswith((".parquet", ".pq")) and bool(store.mark(last))
    else:
        here = Path(text.removeprefix("file://")).expanduser()
        here = here if here.name not in {"", ".."} else here.absolute()
        store, last, single, near = store_at(here.parent), here.name, here.is_file(), near_file(here)
    if single:
        return ParquetSource(name or last.rpartition(".")[0], TableFiles(store, [last]))
    if not store.children(last) and not (store.is_local and here.is_dir()):
        raise StorageError(f"no such file or folder{near}", where=text)
    table = live_files(store, last)
    if not table.files:
        raise StorageError("the folder has no Parquet files", where=text)
    return ParquetSource(name or last or "data", table)
