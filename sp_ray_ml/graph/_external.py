"""What sorts more edges than fit in memory: a spool of chunks, and partitions of them by ranges of nodes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._row_kernels import group
from sp_ray_ml.storage import storage_errors

__all__ = ["Columns", "Limits", "Partitions", "Spool", "in_order"]

Columns = tuple[NDArray[Any], ...]
"""Columns of some rows, all of one length."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_MOST_BLOCKS = 1 << 16


@dataclass(frozen=True)
class Limits:
    """What bounds the memory.

    Attributes:
        chunk_rows: Rows that are read, encoded and partitioned at a time.
        partition_rows: Rows of a partition, which is sorted in memory. One node's rows are in one partition, so the
            largest has at most as many rows more as a node has edges.
        threads: How many chunks or partitions are worked on at a time.
    """

    chunk_rows: int = 1 << 18
    partition_rows: int = 1 << 18
    threads: int = 1

    @classmethod
    def of(cls, rows: int, threads: int) -> Limits:
        """Some hundred chunks and partitions, so that what a chunk adds to a partition is worth a write.

        Small ones fit in a core's cache; large ones, of a graph of 2 billion edges or more, have 4 million rows.
        """
        size = min(max(rows >> 9, 1 << 18), 1 << 22)
        return cls(size, size, threads)


def in_order(
    pool: Executor, run: Callable[[_Item], _Result], items: Iterable[_Item], ahead: int
) -> Iterator[_Result]:
    """`run` of each item, in the order of the items, at most `ahead` of them begun and not yet taken."""
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(run, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


class Spool:
    """Chunks of rows in one file, written one after the other and read by number."""

    def __init__(self, file: Path, types: Sequence[np.dtype[Any]]) -> None:
        self.path, self.types = file, list(types)
        self.rows: list[int] = []
        self._starts = [0]
        with storage_errors(file):
            self._file = file.open("w+b", buffering=0)

    def append(self, columns: Columns) -> None:
        """Write a chunk."""
        at = self._starts[-1]
        with storage_errors(self.path):
            for column, kind in zip(columns, self.types, strict=True):
                at += _write(self._file.fileno(), np.ascontiguousarray(column, kind), at)
        self.rows.append(len(columns[0]))
        self._starts.append(at)

    def chunk(self, number: int) -> Columns:
        """Read a chunk; several threads may."""
        at, rows = self._starts[number], self.rows[number]
        columns = []
        for kind in self.types:
            columns.append(_read(self._file.fileno(), kind, rows, at, self.path))
            at += columns[-1].nbytes
        return tuple(columns)

    def remove(self) -> None:
        """Delete the file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class Partitions:
    """Rows brought into partitions, each a range of nodes; one file a column, each partition a part of it.

    Args:
        folder: Where the files are made.
        counts: Rows of each node, [nodes].
        types: Of the columns; the first is the node.
        limits: How large a partition may be.
    """

    def __init__(
        self, folder: Path, counts: NDArray[np.int64], types: Sequence[np.dtype[Any]], limits: Limits
    ) -> None:
        self.types, self.limits = list(types), limits
        self.num_nodes = len(counts)
        self._shift = max(0, (max(1, self.num_nodes) - 1).bit_length() - (_MOST_BLOCKS.bit_length() - 1))
        edges = np.arange(0, self.num_nodes, 1 << self._shift)
        blocks = np.add.reduceat(counts, edges) if self.num_nodes else np.zeros(0, np.int64)
        before = np.cumsum(blocks) - blocks
        _, first, self._of_block = np.unique(
            before // limits.partition_rows, return_index=True, return_inverse=True
        )
        self.begins = np.append(first << self._shift, self.num_nodes)
        """First node of each partition, and one more."""
        self.rows = np.add.reduceat(blocks, first) if len(first) else np.zeros(0, np.int64)
        self._starts = np.cumsum(self.rows) - self.rows
        self._filled = np.zeros(len(first), np.int64)
        self._paths = [folder / f"partitions-{i}" for i in range(len(types))]
        self._files = []
        for path in self._paths:
            with storage_errors(path):
                self._files.append(path.open("w+b", buffering=0))

    def __len__(self) -> int:
        return len(self.rows)

    def grouped(self, columns: Columns) -> tuple[NDArray[np.int64], Columns]:
        """A chunk's rows by partition: where each begins, and the columns in that order, which is stable."""
        partition = self._of_block[columns[0] >> self._shift]
        indptr, order = np.zeros(len(self) + 1, np.int64), np.empty(len(partition), np.int64)
        group(partition, 0, indptr, order)
        return indptr, tuple(column[order] for column in columns)

    def append(self, indptr: NDArray[np.int64], columns: Columns) -> None:
        """Write what `grouped` gave."""
        ends = indptr.tolist()
        for partition in np.flatnonzero(np.diff(indptr)).tolist():
            begin, end = ends[partition], ends[partition + 1]
            at = int(self._starts[partition] + self._filled[partition])
            for file, path, column, kind in zip(self._files, self._paths, columns, self.types, strict=True):
                with storage_errors(path):
                    _write(file.fileno(), np.ascontiguousarray(column[begin:end], kind), at * kind.itemsize)
            self._filled[partition] += end - begin

    def read(self, partition: int) -> Columns:
        """The rows of a partition, in the order in which they came."""
        rows, start = int(self.rows[partition]), int(self._starts[partition])
        return tuple(
            _read(file.fileno(), kind, rows, start * kind.itemsize, path)
            for file, path, kind in zip(self._files, self._paths, self.types, strict=True)
        )

    def fill(self, pool: Executor, chunks: Iterable[Callable[[], Columns]]) -> None:
        """Bring chunks in, each made by a call in the pool, in their order."""
        for grouped in in_order(pool, lambda chunk: self.grouped(chunk()), chunks, self.limits.threads):
            self.append(*grouped)

    def remove(self) -> None:
        """Delete the files."""
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)


def _write(handle: int, array: NDArray[Any], at: int) -> int:
    data = array.data.cast("B") if array.size else memoryview(b"")
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], at + done)
    return done


def _read(handle: int, kind: np.dtype[Any], rows: int, at: int, path: Path) -> NDArray[Any]:
    array = np.empty(rows, kind)
    data = array.data.cast("B") if rows else memoryview(bytearray())
    done = 0
    with storage_errors(path, "read"):
        while done < len(data):
            got = os.preadv(handle, [data[done:]], at + done)
            if not got:
                raise OSError(f"ends {len(data) - done} bytes early")
            done += got
    return array
