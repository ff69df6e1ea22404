"""The file of what was measured of each user or row, by which two runs are compared."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from sp_ray_ml.config import Document, Settings, check, document_of
from sp_ray_ml.errors import StorageError
from sp_ray_ml.inference.evaluators import Evaluator, EvaluatorField, Ranking, RowEvaluator
from sp_ray_ml.storage import storage_errors

__all__ = [
    "RECOMMENDED",
    "TEST_DIGEST",
    "TEST_ITEMS",
    "UNITS",
    "UnitWriter",
    "Units",
    "digests",
    "lists_column",
    "lists_header",
    "rows_header",
    "units_of",
]

UNITS = "units.parquet"
TEST_ITEMS = "test_items"
"""Column of users: how many test items they have."""
TEST_DIGEST = "test_digest"
"""Column of users: a number that tells other test items, be they as many."""
RECOMMENDED = "recommended"
"""Column of users: the items of their list, the best first."""
_KEY = b"sp_ray_ml.units"


class _Header(Settings):
    """What the columns of the file are."""

    evaluators: list[EvaluatorField]
    ids: list[str]
    metrics: list[str]
    k: list[int] = Field(default=[])
    num_items: int = 0


def rows_header(evaluators: Sequence[RowEvaluator], ids: Sequence[str]) -> dict[str, Any]:
    """Of rows: their truth and predictions, as the evaluators read them."""
    header = _Header(evaluators=list(evaluators), ids=list(ids), metrics=[])
    return dict(document_of(header).data)


def lists_header(
    settings: Ranking | None, ids: Sequence[str], metrics: Sequence[str], k: Sequence[int], num_items: int
) -> dict[str, Any]:
    """Of users: the values whose means are the metrics, and lists of so many items of a catalogue of that size."""
    header = _Header(
        evaluators=[] if settings is None else [settings], ids=list(ids), metrics=list(metrics), k=sorted(set(k)),
        num_items=num_items,
    )  # fmt: skip
    return dict(document_of(header).data)


def lists_column(lists: NDArray[np.integer], ids: Callable[[NDArray[np.int64]], pa.Array]) -> pa.Array:
    """Lists `[users, depth]` of codes, -1 where one ends, as a column of lists of ids."""
    there = lists >= 0
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), ids(lists[there].astype(np.int64)))


def digests(indptr: NDArray[np.integer], items: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number of each user's test items, whatever their order, and if one is there twice.

    Args:
        indptr: [users + 1], where each user's begin.
        items: uint64 [test items], what tells each from all others.
    """
    mixed = items * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
    of = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((mixed, of))
    mixed, of = mixed[order], of[order]
    first = np.ones(len(of), np.bool_)
    first[1:] = (mixed[1:] != mixed[:-1]) | (of[1:] != of[:-1])
    found = np.zeros(len(indptr) - 1, np.uint64)
    np.add.at(found, of[first], mixed[first])  # whole numbers, modulo 2^64: the order does not matter
    return found


class UnitWriter:
    """Writes the file, which appears whole when it is closed, or when a block of it ends without an error.

    Args:
        path: The file.
        header: What its columns are.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._path, self._header = path, header
        self._partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, rows: pa.Table) -> None:
        """Add rows, all of one schema."""
        with storage_errors(self._path):
            if self._writer is None:
                schema = rows.schema.with_metadata({_KEY: json.dumps(self._header).encode()})
                self._writer = pq.ParquetWriter(self._partial, schema, compression="zstd")
            self._writer.write_table(rows.replace_schema_metadata(self._writer.schema.metadata))

    def close(self) -> None:
        """Put the file in its place; without rows there is none."""
        if self._writer is not None:
            with storage_errors(self._path):
                self._writer.close()
                self._partial.replace(self._path)

    def discard(self) -> None:
        """Remove what was written."""
        if self._writer is not None:
            self._writer.close()
        self._partial.unlink(missing_ok=True)


class Units(NamedTuple):
    """What `UnitWriter` wrote.

    Attributes:
        evaluators: What measured them.
        ids: Columns of the ids.
        metrics: Of users: columns whose means are metrics.
        k: Of users: lengths of the list.
        num_items: Of users: size of the catalogue; 0 where the lists were not kept.
        table: The rows.
    """

    evaluators: list[Evaluator]
    ids: list[str]
    metrics: list[str]
    k: list[int]
    num_items: int
    table: pa.Table


def units_of(path: Path) -> Units:
    """Read the file.

    Raises:
        StorageError: There is no such file, or it is another's.
    """
    try:
        with storage_errors(path, "read"):
            table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise StorageError(f"is no file of measured units: {error}", where=str(path)) from error
    written = (table.schema.metadata or {}).get(_KEY)
    if written is None:
        raise StorageError("is no file of measured units", where=str(path))
    header = check(_Header, Document(data=json.loads(written)))
    return Units(list(header.evaluators), header.ids, header.metrics, header.k, header.num_items, table)
