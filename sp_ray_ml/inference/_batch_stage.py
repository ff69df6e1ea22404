"""What a batch prediction has done so far, in a folder: the predictions of whole partitions, each with a record.

    job.json                 what is predicted, from what, and the id of the write at the end
    part-000003.json         the record of a partition: how many rows, and the names of its files
    part-000003-….parquet    its predictions; those that no record names are of a process that was killed
    rejected-000003-….parquet    its rows that could not be predicted

A record appears whole after its files, so that a partition is there or not, however often it was begun.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import StorageError
from sp_ray_ml.storage import read_json, remove, storage_errors, write_json

__all__ = ["Done", "PartWriter", "Stage", "check_seen"]

_JOB = "job.json"


@dataclass(frozen=True)
class Done:
    """The record of a partition.

    Attributes:
        number: Its place.
        rows: Rows read.
        written: Rows of predictions.
        rejected: Rows that could not be predicted.
        files: Its file of predictions, and that of rejected rows where there is one, with their sizes in bytes.
        checksum: Of its rows, where they might be others when they are read again.
        worker: Names the process that did it.
        began: When that process had begun to load the model, in seconds since 1970.
        ended: When the partition was done.
        batch_rows: The most rows of a batch.
        device_seconds: How long the GPU was busy; None without one.
    """

    number: int
    rows: int
    written: int
    rejected: int
    files: Mapping[str, int]
    checksum: int | None
    worker: str
    began: float
    ended: float
    batch_rows: int
    device_seconds: float | None


class Stage:
    """The folder.

    Args:
        path: Where it is; workers on other machines have to see it under the same path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, job: Mapping[str, Any], plan: Callable[[], Mapping[str, int]]) -> dict[str, Any]:
        """Take up what an earlier start of the same job has left, or start anew.

        Args:
            job: What makes it the same job, as plain data.
            plan: Gives what a job's first start decides for the later ones.

        Returns:
            The plan, and as `commit` the id of the write at the end, the same for all starts of a job.
        """
        before = read_json(self.path / _JOB) if (self.path / _JOB).exists() else {}
        if before.get("job") != dict(job):
            self.clear()
            before = {"job": dict(job), "plan": {**plan(), "commit": uuid.uuid4().hex}}
            write_json(self.path / _JOB, before)
        return dict(before["plan"])

    def records(self) -> dict[int, Done]:
        """The partitions that are done and whose files are as they were written, by their number."""
        found = {}
        for file in sorted(self.path.glob("part-*.json")):
            done = Done(**read_json(file))
            if all(_size(self.path / name) == size for name, size in done.files.items()):
                found[done.number] = done
        return found

    def clear(self) -> None:
        """Remove all but the lock: first what says whose the rest is."""
        remove(self.path / _JOB)
        for file in self.path.iterdir():
            if file.name != ".lock":
                remove(file)

    def write(self, done: Done) -> None:
        """Make a partition done."""
        write_json(self.path / f"part-{done.number:06}.json", asdict(done))

    def source(self, name: str, kind: str, schema: pa.Schema, records: Sequence[Done]) -> Source:
        """What was kept of all partitions in their order: `part` the predictions, `rejected` the other rows."""
        files = [self.path / n for d in records for n in d.files if n.startswith(f"{kind}-")]
        rows = sum(d.written if kind == "part" else d.rejected for d in records)

        def stream() -> Iterator[pa.RecordBatch]:
            for file in files:
                with storage_errors(file, "read"), pq.ParquetFile(file, pre_buffer=False) as opened:
                    for batch in opened.iter_batches():
                        yield from pa.Table.from_batches([batch]).cast(schema).to_batches()

        return Source(name, schema, stream, num_rows=rows)


def _kept(schema: pa.Schema) -> pa.Schema:
    """What Parquet gives back as it was: Arrow reads no nulls among lists of a fixed size."""
    return pa.schema(
        [
            pa.field(f.name, pa.list_(f.type.value_type) if pa.types.is_fixed_size_list(f.type) else f.type)
            for f in schema
        ]
    )


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


class PartWriter:
    """A file of a partition, made when the first rows come, under a name of its own."""

    def __init__(self, folder: Path, kind: str, number: int, schema: pa.Schema) -> None:
        # Another process may be at the same partition, which was given out again: no two write into one file.
        self._file = folder / f"{kind}-{number:06}-{uuid.uuid4().hex[:12]}.parquet"
        self._schema = _kept(schema)
        self._writer: Any = None
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Add some rows."""
        if not table.num_rows:
            return
        with storage_errors(self._file):
            if self._writer is None:
                self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
            self._writer.write_table(table.cast(self._schema), row_group_size=table.num_rows)
        self.rows += table.num_rows

    def close(self) -> dict[str, int]:
        """End the file, and return its name and size; nothing where there were no rows."""
        if self._writer is None:
            return {}
        with storage_errors(self._file):
            self._writer.close()
            handle = os.open(self._file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            return {self._file.name: self._file.stat().st_size}

    def drop(self) -> None:
        """Give it up."""
        if self._writer is not None:
            self._writer.close()
            self._file.unlink(missing_ok=True)


def check_seen(folder: Path) -> None:
    """Refuse to work where the folder is another machine's.

    Raises:
        StorageError: It is not there.
    """
    if not (folder / _JOB).is_file():
        raise StorageError(
            "this worker does not see the folder in which predictions are kept until they are written",
            where=str(folder),
            hint="Give one that all machines have under the same path: folder=…",
        )
