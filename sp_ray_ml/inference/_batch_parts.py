"""The partitions of a batch prediction: parts of the input, each predicted, kept and counted as one."""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from sp_ray_ml.data._parquet_pieces import files_mark, parquet_pieces
from sp_ray_ml.data.source import BLOCK_ROWS, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from sp_ray_ml.data._store import Store


__all__ = ["Part", "copied_parts", "mark_of", "pieces_of", "stream_parts"]


@dataclass(frozen=True)
class Part:
    """One partition.

    Attributes:
        number: Its place, from 0.
        start: Number of its first row.
        source: Its rows.
        checksum: Of its rows, where these may be others when they are read again.
    """

    number: int
    start: int
    source: Source
    checksum: int | None = None


def pieces_of(source: Source, rows: int) -> list[Part] | None:
    """The source in partitions that are read one without the other; None where it can only be read from its start."""
    from sp_ray_ml.data._parquet_files import ParquetSource

    if not isinstance(source, ParquetSource) or source._conditions:
        return None
    sources = parquet_pieces(source.name, source.schema, source._dataset(), rows)
    parts, start = [], 0
    for number, piece in enumerate(sources):
        parts.append(Part(number, start, piece))
        start += piece.num_rows or 0
    return parts


def mark_of(source: Source) -> str | None:
    """Text that changes when the source's rows may have; None where only reading them would tell."""
    from sp_ray_ml.data._parquet_files import ParquetSource

    return files_mark(source._dataset()) if isinstance(source, ParquetSource) else None


# --- what is only read from its start ---------------------------------------------------------------------------


def stream_parts(source: Source, rows: int, done: Callable[[int, int], bool]) -> Iterator[Part]:
    """The source's rows in partitions of exactly `rows`, the last one shorter; one is held at a time.

    Args:
        source: Read once, from its start.
        rows: Rows a partition.
        done: Whether the partition of this number and checksum is there already: it is left out.
    """
    number = 0
    with closing(_grouped(source, rows)) as groups:
        for blocks in groups:
            checksum = _checksum(blocks)
            if not done(number, checksum):
                held = _held(source, blocks)
                yield Part(number, number * rows, held, checksum)
            number += 1


def _grouped(source: Source, rows: int) -> Generator[list[pa.RecordBatch]]:
    """Blocks of one partition after the other. Their sizes depend on nothing but `rows`, as checksums must not."""
    size = min(rows, BLOCK_ROWS)
    blocks: list[pa.RecordBatch] = []
    count = 0
    for block in source.blocks(size):
        blocks.append(block)
        count += block.num_rows
        if count >= rows:
            yield blocks
            blocks, count = [], 0
    if blocks:
        yield blocks


def _held(source: Source, blocks: list[pa.RecordBatch]) -> Source:
    rows = sum(block.num_rows for block in blocks)
    return Source(source.name, source.schema, lambda: iter(blocks), num_rows=rows)


def _checksum(blocks: Iterable[pa.RecordBatch]) -> int:
    total = 0
    for block in blocks:
        total = zlib.crc32(block.serialize(), total)
    return total


class _CopiedRows(Source):
    """Rows of one file of Arrow's; it can be pickled."""

    def __init__(self, name: str, schema: pa.Schema, store: Store, file: str, num_rows: int) -> None:
        super().__init__(name, schema, self._stream, num_rows=num_rows)
        self._store, self._file = store, file

    def _stream(self) -> Iterator[pa.RecordBatch]:
        path = self._store.full(self._file)
        with self._store.errors(self._file, "read"):
            near = self._store.is_local
            with pa.memory_map(path) if near else self._store.arrow.open_input_file(path) as opened:
                reader = pa.ipc.open_file(opened)
                for number in range(reader.num_record_batches):
                    yield reader.get_batch(number)


def copied_parts(parts: Iterable[Part], store: Store) -> Iterator[Part]:
    """Partitions whose rows lie in files, where other processes can read them."""
    for part in parts:
        file, schema = f"rows/{part.number:06}.arrow", part.source.schema
        with store.errors(file), store.sink(file) as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in part.source.batches():
                writer.write_batch(batch)
        copy = _CopiedRows(part.source.name, schema, store, file, part.source.num_rows or 0)
        yield Part(part.number, part.start, copy, part.checksum)
