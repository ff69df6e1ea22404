"""Part files of one write of a table, under names that no reader looks at until they are published."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._schema import partition_values
from sp_ray_ml.errors import DataError
from sp_ray_ml.storage import storage_errors

__all__ = ["Parts"]

_PART_BYTES = 256 << 20
_MOST_OPEN = 64
_NAME_BYTES = 200


class Parts:
    """Writes rows as files of a bounded size, one or more a partition.

    Args:
        folder: The table's.
        version: Of the write; a part of the files' names.
        schema: Of the rows.
        partition_by: The column whose values are folders, and which is not in the files; None for none.

    Attributes:
        num_rows: Rows written so far.
        segments: Names of the partitions' folders so far: `day=2024-01-01`.
    """

    def __init__(self, folder: Path, version: int, schema: pa.Schema, partition_by: str | None) -> None:
        self.num_rows = 0
        self._folder, self._version, self._column = folder, version, partition_by
        names = [name for name in schema.names if name != partition_by]
        if not names:
            raise DataError("there is no column beside the one that it is partitioned by", where=str(folder))
        if partition_by is not None and set(partition_by) & set("=/%"):
            raise DataError(
                f"column {partition_by!r} cannot be in the name of a folder",
                where=str(folder),
                hint="Partition by a column without = / % in its name",
            )
        self._schema = pa.schema([schema.field(name) for name in names])
        self._open: dict[str, tuple[str, Any]] = {}
        self._rows: dict[str, int] = {}

    @property
    def segments(self) -> frozenset[str]:
        return frozenset(path.split("/")[0] for path in self._rows if "/" in path)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            return
        for _, writer in self._open.values():
            with contextlib.suppress(OSError, pa.ArrowException):  # the first error is the one to tell
                writer.close()
        for path in self._rows:
            with contextlib.suppress(OSError):
                self._scratch(path).unlink(missing_ok=True)

    def _scratch(self, path: str) -> Path:
        return self._folder / f".{path.rpartition('/')[2]}.tmp"

    def write(self, batch: pa.RecordBatch, leave_out: Set[str] = frozenset()) -> None:
        """Add rows, but not those of some partitions."""
        for segment, rows in self._cut(batch):
            if segment not in leave_out:
                self._write(segment, rows.select(self._schema.names))

    def _cut(self, batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
        if self._column is None:
            yield "", batch
            return
        values = partition_values(batch, self._column, str(self._folder))
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
        segment = f"{self._column}={quote(text, safe='')}"
        if len(segment.encode()) > _NAME_BYTES:
            raise DataError(
                f"a value of {self._column!r} is too long for the name of a folder: {text[:40]!r}…",
                where=str(self._folder),
                hint="Partition by a column with short values",
            )
        return segment

    def _write(self, segment: str, rows: pa.RecordBatch) -> None:
        with storage_errors(self._folder):
            path, writer = self._open.pop(segment) if segment in self._open else self._begin(segment)
            self._open[segment] = path, writer  # the last one used is the last
            writer.write_batch(rows, row_group_size=max(rows.num_rows, 1))
            self._rows[path] += rows.num_rows
            self.num_rows += rows.num_rows
            if self._scratch(path).stat().st_size >= _PART_BYTES:
                self._close(segment)

    def _begin(self, segment: str) -> tuple[str, Any]:
        if len(self._open) >= _MOST_OPEN:
            self._close(next(iter(self._open)))
        name = f"part-{self._version:06d}-{len(self._rows):04d}.parquet"
        path = f"{segment}/{name}" if segment else name
        self._rows[path] = 0
        return path, pq.ParquetWriter(str(self._scratch(path)), self._schema, compression="zstd")

    def _close(self, segment: str) -> None:
        with storage_errors(self._folder):
            path, writer = self._open.pop(segment)
            writer.close()
            _sync(self._scratch(path))

    def finish(self, *, needed: bool) -> None:
        """Close the files. A table without rows has one, too, which holds its columns: it is made if it is `needed`."""
        if needed and not self._rows:
            self._write("", pa.RecordBatch.from_pylist([], schema=self._schema))
        for segment in list(self._open):
            self._close(segment)

    def publish(self) -> dict[str, int]:
        """Give the files their names; their paths below the folder, and rows."""
        with storage_errors(self._folder):
            for path in self._rows:
                (self._folder / path).parent.mkdir(exist_ok=True)
                self._scratch(path).rename(self._folder / path)
            for folder in {(self._folder / path).parent for path in self._rows} | {self._folder}:
                _sync(folder)
        return self._rows


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
