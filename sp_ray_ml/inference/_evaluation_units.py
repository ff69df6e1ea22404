"""The file of what was measured of each user or row, by which two runs are compared."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.config import Document, Settings, check, document_of
from sp_ray_ml.errors import StorageError
from sp_ray_ml.inference.evaluators import Evaluator, EvaluatorField, Ranking, RowEvaluator
from sp_ray_ml.storage import storage_errors

__all__ = ["TEST_ITEMS", "UNITS", "UnitWriter", "lists_header", "rows_header", "units_of"]

UNITS = "units.parquet"
TEST_ITEMS = "test_items"
"""Column of users: how many test items they have."""
_KEY = b"sp_ray_ml.units"


class _Header(Settings):
    """What the columns of the file are."""

    evaluators: list[EvaluatorField]
    ids: list[str]
    metrics: list[str]


def rows_header(evaluators: Sequence[RowEvaluator], ids: Sequence[str]) -> dict[str, Any]:
    """Of rows: their truth and predictions, as the evaluators read them."""
    header = _Header(evaluators=list(evaluators), ids=list(ids), metrics=[])
    return dict(document_of(header).data)


def lists_header(settings: Ranking | None, ids: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """Of users: the values whose means are the metrics."""
    header = _Header(evaluators=[] if settings is None else [settings], ids=list(ids), metrics=list(metrics))
    return dict(document_of(header).data)


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


def units_of(path: Path) -> tuple[list[Evaluator], list[str], list[str], pa.Table]:
    """What `UnitWriter` wrote: evaluators, columns of ids, metrics (of users), and the rows.

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
    return list(header.evaluators), header.ids, header.metrics, table
