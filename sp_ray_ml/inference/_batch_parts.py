"""The partitions of a batch prediction: parts of the input, each predicted, kept and counted as one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sp_ray_ml.data._columns import plain, with_inner
from sp_ray_ml.data.source import BLOCK_ROWS, Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from sp_ray_ml.data._store import Store
    from sp_ray_ml.inference._batch_stage import Done


__all__ = ["Part", "copied_parts", "pieces_of", "store_parts", "stream_parts"]

_NOTE = "streams.json"


@dataclass(frozen=True)
class Part:
    """One partition.

    Attributes:
        number: Its place, from 0.
        start: Number of its first row; None where that is known only when all before it are done.
        source: Its rows.
        checksum: Of its rows, or of what stands for them, where these may be others when they are read again.
    """

    number: int
    start: int | None
    source: Source
    checksum: int | None = None


def pieces_of(source: Source, rows: int) -> list[Part] | None:
    """The source in partitions that are read one without the other; None where it can only be read from its start."""
    sources = source.pieces(rows)
    if sources is None:
        return None
    parts, start = [], 0
    for number, piece in enumerate(sources):
        parts.append(Part(number, start, piece))
        start += piece.num_rows or 0
    return parts


def store_parts(source: Source, store: Store, records: Mapping[int, Done]) -> list[Part] | None:
    """Partitions as the source's own store cuts the rows; None where it does not.

    Args:
        source: The rows.
        store: Keeps a note, by which they are the same ones when a job goes on; where these are gone, there are others.
        records: Of partitions that are done: where all are, none has to be there any more.
    """
    kept: dict[str, Any] = {"note": None, "parts": 0}
    if store.mark(_NOTE):
        kept = json.loads(store.read(_NOTE))
    marks = [_mark_of(number, kept["note"]) for number in range(kept["parts"])]
    if marks and marks == [records[n].checksum if n in records else None for n in range(len(marks))]:
        gone = Source(source.name, source.schema, lambda: iter(()))  # of rows that nobody reads any more
        return [Part(number, None, gone, mark) for number, mark in enumerate(marks)]
    found = source.streams(kept["note"])
    if found is None:
        return None
    note, streams = found
    if note != kept["note"]:
        store.remove("", [_NOTE])
        store.create(_NOTE, json.dumps({"note": note, "parts": len(streams)}).encode())
    return [Part(number, None, stream, _mark_of(number, note)) for number, stream in enumerate(streams)]


def _mark_of(number: int, note: str) -> int:
    return zlib.crc32(f"{number} {note}".encode())


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
        # Of what is encoded a message holds the places alone, and not the dictionary.
        columns = [_values(column) for column in block.columns]
        total = zlib.crc32(pa.RecordBatch.from_arrays(columns, block.schema.names).serialize(), total)
    return total


def _values(column: pa.Array) -> pa.Array:
    column = plain(column)
    kind = _decoded(column.type)
    return column if column.type.equals(kind) else column.cast(kind)


def _decoded(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries, those within lists and structs neither."""
    return _decoded(kind.value_type) if pa.types.is_dictionary(kind) else with_inner(kind, _decoded)


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
