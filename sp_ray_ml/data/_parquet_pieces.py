"""Parts of a Parquet table that are read one without the other: whole row groups of its files, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data._parquet_files import SCAN_ROWS, went_away
from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import DataError
from sp_ray_ml.storage import storage_errors

__all__ = ["ParquetPiece", "parquet_pieces"]


class _Groups(NamedTuple):
    """Row groups of one file: a fragment of Arrow's, which knows its file system and the values of its folders."""

    fragment: Any
    ids: list[int]


class ParquetPiece(Source):
    """Some row groups of a table; it can be pickled.

    Args:
        name: What messages call the table.
        schema: Columns to read, in their order.
        full: All columns of the table.
        groups: The row groups.
        num_rows: How many rows these have.
    """

    def __init__(
        self, name: str, schema: pa.Schema, full: pa.Schema, groups: Sequence[_Groups], num_rows: int
    ) -> None:
        super().__init__(name, schema, self._stream, num_rows=num_rows)
        self._full, self._groups = full, list(groups)

    def _stream(self) -> Iterator[pa.RecordBatch]:
        names = self.schema.names
        with storage_errors(self.name, "read"):
            try:
                for fragment, ids in self._groups:
                    with fragment.open() as file, pq.ParquetFile(file, pre_buffer=False) as opened:
                        own = opened.schema_arrow
                        if all(
                            n in own.names and own.field(n).type == self._full.field(n).type for n in names
                        ):
                            for batch in opened.iter_batches(SCAN_ROWS, row_groups=ids, columns=names):
                                yield batch.select(names)
                            continue
                    # It lacks a column, or has one in another type, or in its folder's name.
                    yield from fragment.subset(row_group_ids=ids).to_batches(
                        schema=self._full, columns=names, batch_size=SCAN_ROWS, batch_readahead=2, fragment_readahead=1
                    )  # fmt: skip
            except FileNotFoundError as error:
                raise went_away(self.name) from error
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
                raise DataError(f"cannot be read: {error}", where=self.name) from error


def parquet_pieces(name: str, schema: pa.Schema, dataset: Any, rows: int) -> list[Source]:
    """A dataset's rows, in pieces of at least so many rows where its row groups allow it.

    Args:
        name: What messages call it.
        schema: Columns to read.
        dataset: Arrow's, of Parquet files.
        rows: A piece ends with the row group that brings it to so many.
    """
    pieces: list[Source] = []
    waiting: list[_Groups] = []
    count = 0

    def flush() -> None:
        if count:
            pieces.append(ParquetPiece(name, schema, dataset.schema, waiting, count))

    for fragment in dataset.get_fragments():
        ids: list[int] = []
        with storage_errors(fragment.path, "read"):
            groups = fragment.row_groups
        for group in groups:
            ids.append(group.id)
            count += group.num_rows
            if count >= rows:
                waiting.append(_Groups(fragment, ids))
                flush()
                waiting, ids, count = [], [], 0
        if ids:
            waiting.append(_Groups(fragment, ids))
    flush()
    return pieces
