"""What a batch prediction has done so far, in a folder: the predictions of whole partitions, each with a record.

    job.json                     what is predicted, from what, and the id of the write at the end
    records/000003-….json        the record of a partition: how many rows, and the names of its files
    part-000003-….parquet        its predictions; those that no record names are of a process that was killed
    rejected-000003-….parquet    its rows that could not be predicted

A record appears whole after its files, so that a partition is there or not, however often it was begun. All names are
new ones, so that two processes at one partition, which was given out again, do not meet.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sp_ray_ml.data._parquet_files import FinishedFiles, TableFiles
from sp_ray_ml.data._parquet_parts import PartFile
from sp_ray_ml.data._store import Store
from sp_ray_ml.data.source import Source
from sp_ray_ml.errors import ConfigError, StorageError

__all__ = ["TRIES", "Done", "PartWriter", "Stage"]

_JOB, _RECORDS = "job.json", "records"
_LOCK = ".lock"
TRIES = "tries"


@dataclass(frozen=True)
class Done:
    """The record of a partition.

    Attributes:
        number: Its place.
        rows: Rows read.
        written: Rows of predictions.
        rejected: Rows that could not be predicted.
        files: Its file of predictions, and that of rejected rows where there is one, with their rows.
        checksum: Of its rows, where they might be others when they are read again.
        worker: Names the process that did it.
        began: When that process had begun to load the model, in seconds since 1970.
        ended: When the partition was done.
        batch_rows: The most rows of a batch.
        device_seconds: How long the GPU was busy; None without one.
        start: Number of its first row, as of `Part`: where it is None, rows are numbered from 0 in its files.
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
    start: int | None = 0


class Stage:
    """The folder.

    Args:
        store: Where it is: a path, which workers on other machines have to see, or a URL.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def check_own(self) -> None:
        """Refuse a folder with other files in it, since it will be removed.

        Raises:
            ConfigError: There are some.
        """
        there = self.store.children()
        if there and not {_JOB, _LOCK} & set(there):
            raise ConfigError(
                f"the folder has other files in it, such as {min(there)}",
                where=self.store.url,
                hint="Give a new folder: it is removed at the end",
            )

    def check_seen(self) -> None:
        """Refuse to work where the folder is another machine's.

        Raises:
            StorageError: It is not there.
        """
        if not self.store.mark(_JOB):
            raise StorageError(
                "this worker does not see the folder in which predictions are kept until they are written",
                where=self.store.url,
                hint="Give one that all machines have under the same path, or a URL (gs://…, s3://…): folder=…",
            )

    def begin(self, job: Mapping[str, Any], plan: Callable[[], Mapping[str, int]]) -> dict[str, Any]:
        """Take up what an earlier start of the same job has left, or start anew.

        Args:
            job: What makes it the same job, as plain data.
            plan: Gives what a job's first start decides for the later ones.

        Returns:
            The plan, and as `commit` the id of the write at the end, the same for all starts of a job.
        """
        before = json.loads(self.store.read(_JOB)) if self.store.mark(_JOB) else {}
        if before.get("job") != dict(job):
            self.clear()
            before = {"job": dict(job), "plan": {**plan(), "commit": secrets.token_hex(16)}}
            self.store.create(_JOB, json.dumps(before).encode())
        return dict(before["plan"])

    def records(self) -> dict[int, Done]:
        """The partitions that are done and whose files are there, by their number; of several records the last one."""
        files = self.store.find("")
        found: dict[int, Done] = {}
        for name in files:
            if name.startswith(f"{_RECORDS}/") and name.endswith(".json"):
                done = Done(**json.loads(self.store.read(name)))
                last = found.get(done.number)
                if done.files.keys() <= files.keys() and (last is None or last.ended < done.ended):
                    found[done.number] = done
        return found

    def clear(self) -> None:
        """Remove all but the lock: last what says whose the rest is, so that who is killed here is gone on from."""
        self.store.remove("", [name for name in self.store.find("") if name not in {_JOB, _LOCK}])
        self.store.remove("", [_JOB])

    def tries(self, number: int) -> int:
        """How often a process has begun a partition."""
        return sum(name.startswith(f"{number:06}-") for name in self.store.find(TRIES))

    def begun(self, number: int) -> None:
        """Note that a process begins a partition."""
        self.store.create(f"{TRIES}/{number:06}-{secrets.token_hex(6)}", b"")

    def drop(self, *folders: str) -> None:
        """Remove what was there for the workers."""
        for folder in folders:
            self.store.remove(folder, self.store.find(folder))

    def write(self, done: Done) -> None:
        """Make a partition done."""
        name = f"{_RECORDS}/{done.number:06}-{secrets.token_hex(6)}.json"
        self.store.create(name, json.dumps(asdict(done)).encode())

    def source(
        self, name: str, kind: str, schema: pa.Schema, records: Sequence[Done], numbers: str | None = None
    ) -> Source:
        """What was kept of all partitions in their order: `part` the predictions, `rejected` the other rows.

        Args:
            name: What messages call it.
            kind: Of the files.
            schema: Of the rows.
            records: Of all partitions.
            numbers: The column with the rows' numbers, if there is one.
        """
        if numbers is not None and any(done.start is None for done in records):
            return self._numbered(name, kind, schema, records, numbers)
        rows = {n: count for done in records for n, count in done.files.items() if n.startswith(f"{kind}-")}
        if not rows:
            return Source(name, schema, lambda: iter(()), num_rows=0)
        files = FinishedFiles(name, TableFiles(self.store, list(rows), num_rows=sum(rows.values())), rows)
        if files.schema.equals(schema):
            return files

        def stream() -> Iterator[pa.RecordBatch]:
            for batch in files.batches():
                yield from pa.Table.from_batches([batch]).cast(schema).to_batches()

        return Source(name, schema, stream, num_rows=files.num_rows)

    def _numbered(
        self, name: str, kind: str, schema: pa.Schema, records: Sequence[Done], column: str
    ) -> Source:
        """With numbers over all partitions, where each has its own."""
        index = schema.get_field_index(column)

        def stream() -> Iterator[pa.RecordBatch]:
            start = 0
            for done in records:
                for batch in self.source(name, kind, schema, [done]).batches():
                    number = pc.add(batch.column(index), 0 if done.start is not None else start)
                    columns = [*batch.columns[:index], number, *batch.columns[index + 1 :]]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)
                start += done.rows

        return Source(name, schema, stream, num_rows=self.source(name, kind, schema, records).num_rows)

    def finish(self, schema: pa.Schema, records: Sequence[Done]) -> None:
        """Leave nothing but the predictions, which a folder of Parquet files then is; of no rows, their columns."""
        named = {name for done in records for name in done.files}
        if not named:
            with self.store.sink("part-000000.parquet") as sink:
                pq.write_table(schema.empty_table(), sink)
            named = {"part-000000.parquet"}
        self.store.remove("", [name for name in self.store.find("") if name not in named])


def _kept(schema: pa.Schema) -> pa.Schema:
    """What Parquet gives back as it was: Arrow reads no nulls among lists of a fixed size."""
    return pa.schema(
        [
            pa.field(f.name, pa.list_(f.type.value_type) if pa.types.is_fixed_size_list(f.type) else f.type)
            for f in schema
        ]
    )


class PartWriter:
    """A file of a partition, made when the first rows come."""

    def __init__(self, store: Store, kind: str, number: int, schema: pa.Schema) -> None:
        self._store, self._name = store, f"{kind}-{number:06}-{secrets.token_hex(6)}.parquet"
        self._schema = _kept(schema)
        self._file: PartFile | None = None
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Add some rows."""
        if not table.num_rows:
            return
        if self._file is None:
            self._file = PartFile(self._store, self._name, self._schema)
        self._file.write(table.cast(self._schema))
        self.rows += table.num_rows

    def close(self) -> dict[str, int]:
        """End the file, and return its name and rows; nothing where there were no rows."""
        if self._file is None:
            return {}
        self._file.close()
        return {self._name: self.rows}

    def drop(self) -> None:
        """Give it up."""
        if self._file is not None:
            self._file.give_up()
