"""Part files of one write of a table. They have new names, which no reader looks for until a manifest has them."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator, Set
from functools import partial
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._schema import partition_values
from sp_ray_ml.data._store import Store
from sp_ray_ml.errors import DataError

__all__ = ["PartFile", "Parts", "check_layout", "partition_of"]

_PART_BYTES = 256 << 20
_MOST_OPEN = 64
_NAME_BYTES = 200
_NULLS = {"NULL", "__HIVE_DEFAULT_PARTITION__"}


def check_layout(schema: pa.Schema, partition_by: str | None, where: str) -> None:
    """Check that a table can lie in folders named by the values of a column.

    Raises:
        DataError: There is no other column, or its name cannot be in a folder's.
    """
    if set(schema.names) <= {partition_by}:
        raise DataError("there is no column beside the one that it is partitioned by", where=where)
    if partition_by is not None and set(partition_by) & set("=/%"):
        raise DataError(
            f"column {partition_by!r} cannot be in the name of a folder",
            where=where,
            hint="Partition by a column without = / % in its name",
        )


def partition_of(path: str) -> str:
    """The partition that a file below the table's folder belongs to, however its folder's name is written."""
    return unquote(path.rpartition("/")[0])


class Parts:
    """Writes rows as files of a bounded size, one or more a partition.

    Args:
        store: Where.
        table: The table's folder.
        version: Of the write; a part of the files' names.
        schema: Of the rows.
        partition_by: The column whose values are folders, and which is not in the files; None for none.

    Attributes:
        num_rows: Rows written so far.
        files: Path of every file below the table's folder, and its rows.
    """

    def __init__(
        self, store: Store, table: str, version: int, schema: pa.Schema, partition_by: str | None
    ) -> None:
        self.num_rows = 0
        self.files: dict[str, int] = {}
        self._store, self._table, self._column = store, table, partition_by
        self._place = store.place(table)
        # The version says later whether this write can still be at work, the rest tells two writers apart: where a
        # lock keeps others out, the same rows make the same files.
        self._name = f"part-{version:06d}-{'0' if store.is_local else secrets.token_hex(4)}"
        check_layout(schema, partition_by, self._place)
        self._schema = pa.schema([field for field in schema if field.name != partition_by])
        self._open: dict[str, PartFile] = {}

    @property
    def partitions(self) -> frozenset[str]:
        """The partitions so far: `day=2024-01-01`."""
        return frozenset(map(partition_of, self.files)) - {""}

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            return
        for part in self._open.values():
            with contextlib.suppress(OSError, pa.ArrowException):  # the first error is the one to tell
                part.give_up()
        self._store.remove(self._table, self.files)

    def write(self, batch: pa.RecordBatch, leave_out: Set[str] = frozenset()) -> None:
        """Add rows, but not those of some partitions."""
        for segment, rows in self._cut(batch):
            if unquote(segment) not in leave_out:
                self._write(segment, rows.select(self._schema.names))

    def _cut(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        if self._column is None:
            yield "", batch
            return
        values = partition_values(batch, self._column, self._place)
        segments = [self._segment(text) for text in values.cast(pa.string()).to_pylist()]
        if len(segments) == 1:
            yield segments[0], batch
            return
        codes = batch.column(self._column).dictionary_encode().indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        ends = np.cumsum(np.bincount(codes, minlength=len(segments)))
        ordered = batch.take(pa.array(order))
        for segment, first, end in zip(segments, [0, *ends], ends, strict=False):
            yield segment, ordered.slice(int(first), int(end - first))

    def _segment(self, text: str) -> str:
        value = quote(text, safe="")
        if text.upper() in _NULLS:
            # Text here; other programs take it for no value when it is written in plain letters.
            value = f"%{ord(text[0]):02X}{text[1:]}"
        segment = f"{self._column}={value}"
        if len(segment.encode()) > _NAME_BYTES:
            raise DataError(
                f"a value of {self._column!r} is too long for the name of a folder: {text[:40]!r}…",
                where=self._place,
                hint="Partition by a column with short values",
            )
        return segment

    def _write(self, segment: str, rows: pa.RecordBatch) -> None:
        part = self._open.pop(segment) if segment in self._open else self._begin(segment)
        self._open[segment] = part  # the last one used is the last
        part.write(pa.Table.from_batches([rows]))
        self.files[part.path.removeprefix(f"{self._table}/")] += rows.num_rows
        self.num_rows += rows.num_rows
        if part.size >= _PART_BYTES:
            self._open.pop(segment).close()

    def take(self, store: Store, file: str, rows: int) -> None:
        """Make a finished file of these columns a part as it is."""
        path = self._new("")
        self.files[path] = rows
        self._store.take(store, file, f"{self._table}/{path}")
        self.num_rows += rows

    def _new(self, segment: str) -> str:
        name = f"{self._name}-{len(self.files):04d}.parquet"
        return f"{segment}/{name}" if segment else name

    def _begin(self, segment: str) -> PartFile:
        if len(self._open) >= _MOST_OPEN:
            self._open.pop(next(iter(self._open))).close()
        path = self._new(segment)
        self.files[path] = 0
        return PartFile(self._store, f"{self._table}/{path}", self._schema)

    def finish(self, *, needed: bool) -> None:
        """Close the files. A table without rows has one, too, which holds its columns: it is made if it is `needed`."""
        if needed and not self.files:
            self._write("", pa.RecordBatch.from_pylist([], schema=self._schema))
        for segment in list(self._open):
            self._open.pop(segment).close()


class PartFile:
    """One Parquet file that is being written; it appears whole when it is closed.

    Args:
        store: Where.
        path: The file's path there.
        schema: Of the rows.
    """

    def __init__(self, store: Store, path: str, schema: pa.Schema) -> None:
        self.path = path
        self._errors = partial(store.errors, path)
        self._stack = contextlib.ExitStack()
        with self._errors():
            self._file = self._stack.enter_context(store.sink(path))
            try:
                self._writer = pq.ParquetWriter(
                    self._file, schema, compression="zstd", use_dictionary=_repeated(schema) or False
                )
            except BaseException:
                self._stack.__exit__(*sys.exc_info())
                raise

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self._file.tell())

    def write(self, rows: pa.Table) -> None:
        """Add rows, as one row group."""
        with self._errors():
            self._writer.write_table(rows, row_group_size=max(rows.num_rows, 1))

    def close(self) -> None:
        """Have it appear."""
        with self._errors(), self._stack:
            self._writer.close()

    def give_up(self) -> None:
        """Leave nothing of it."""
        self._writer.is_open = False  # what it holds back is not to be written any more
        stop = _GivenUpError()
        with contextlib.suppress(_GivenUpError), self._stack:
            raise stop


class _GivenUpError(Exception):
    """Ends the writing of a file that will not be."""


def _repeated(schema: pa.Schema) -> list[str]:
    """The columns that may have few values: all but numbers with fractions, whose dictionaries take most of the time
    of a write and make the file larger.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    leaves = (columns.column(place) for place in range(len(columns)))
    return [leaf.path for leaf in leaves if leaf.physical_type not in {"FLOAT", "DOUBLE"}]
