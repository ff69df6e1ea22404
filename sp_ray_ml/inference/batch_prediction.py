"""`batch_predict`: predictions for a table of any size, written whole or not at all, in this process or on Ray.

    rows ─▶ partitions ─┬─▶ read ─▶ prepare ─▶ model ─▶ keep ─┬─▶ one write: the table appears at once
                        └─▶ …  threads of this process,       ┘   rejected rows go to a table of their own
                               or actors of Ray Data

Partitions that are done are kept in a folder until the end, so that a prediction that was broken off goes on.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.config import fingerprint as digest_of
from sp_ray_ml.config import redact
from sp_ray_ml.data._schema import check_append
from sp_ray_ml.data.source import BLOCK_ROWS, Source, as_source
from sp_ray_ml.data.warehouse import Mode, Warehouse, check_write, open_warehouse
from sp_ray_ml.errors import ConfigError, DataError, ResourceError
from sp_ray_ml.inference._batch_engine import REASON, ROW, Engine, Job, rejected_schema, too_many
from sp_ray_ml.inference._batch_model import Model, find_model, output_schema, sent
from sp_ray_ml.inference._batch_parts import copied_parts, mark_of, pieces_of, stream_parts
from sp_ray_ml.inference._batch_size import batch_rows_for, memory_of, partition_rows_for, row_bytes
from sp_ray_ml.inference._batch_stage import Done, Stage
from sp_ray_ml.inference.batch_settings import BatchScaling, Rejected
from sp_ray_ml.inference.settings import Output
from sp_ray_ml.storage import Lock, remove, storage_errors

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from sp_ray_ml.inference._batch_parts import Part
    from sp_ray_ml.train.predictor import Predictor

__all__ = ["BatchResult", "batch_predict"]

_FEW = 1_000
"""Rejected rows below which a share of rows whose number is not known yet is not judged."""


@dataclass(frozen=True)
class BatchResult:
    """What a batch prediction did.

    Attributes:
        table: Where the predictions are.
        rows: Rows read.
        written: Rows of predictions that the table got.
        rejected: Rows that could not be predicted.
        rejected_table: Where these are, or None.
        seconds: From the call to the end of the write.
        rows_per_second: Rows predicted by this call, by its seconds.
        gpu_busy: Share of the workers' time in which their GPUs were at work; None on CPUs.
        worker_hours: Time of all worker processes, each from loading the model to its last partition.
        batch_rows: Rows of a batch.
        partitions: Partitions that the rows were cut in.
        resumed: Of these, those that an earlier call had done.
    """

    table: str
    rows: int
    written: int
    rejected: int
    rejected_table: str | None
    seconds: float
    rows_per_second: float
    gpu_busy: float | None
    worker_hours: float
    batch_rows: int
    partitions: int
    resumed: int

    def __str__(self) -> str:
        parts = [
            f"{self.rows:,} rows in {self.seconds:,.1f} s: {self.rows_per_second:,.0f} rows/s",
            f"{self.worker_hours:.4f} worker-hours",
        ]
        if self.gpu_busy is not None:
            parts.append(f"GPU busy {self.gpu_busy:.0%}")
        if self.rejected_table is not None:
            parts.append(f"{self.rejected:,} rejected into {self.rejected_table}")
        if self.resumed:
            parts.append(f"{self.resumed} of {self.partitions} partitions were there already")
        return f"{self.table}: " + ", ".join(parts)


def batch_predict(
    predictor: Any,
    data: Any,
    output: Output | tuple[Any, str],
    *,
    scaling: BatchScaling | None = None,
    rejected: Rejected | None = None,
    batch_rows: int | None = None,
    partition_rows: int | None = None,
    order_column: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    commit: str | None = None,
    progress: Callable[[float, float, str], None] | None = None,
) -> BatchResult:
    """Predict for all rows of a table, of any size, in bounded memory, and write the predictions at once.

    Each row is written exactly once, in the order of the rows: whoever reads the output sees all of them or none.
    Called again after it was broken off (killed, a full disk, a lost machine), with the same arguments, it goes on
    with the partitions that are missing. What a row's prediction is depends on nothing but the row and the predictor
    where that holds for `predictor.predict`, as it does for all that are trained here.

    Args:
        predictor: A sealed one (path of a predictor or run, Ray `Checkpoint`, MLflow URI `models:/…`), a `Predictor`,
            or the import path `module:Class` of a subclass of your own, with arguments as `Custom(target=…,
            arguments={…})`.
        data: A `Source` (`warehouse.source(query)`), or whatever `as_source` takes: a path of Parquet, a table, a Ray
            Dataset. Parquet is read in partitions by the workers themselves. What can only be read from its start is
            read once by this process, for workers into `folder`; when it is called again, too, and compared by
            checksums with what is done.
        output: Where predictions go: the same settings as in a config, or warehouse (or its URL) and table.
        scaling: In this process (the default), or on how many actors.
        rejected: Where rows go that cannot be predicted, and how many there may be; without, the first is an error.
        batch_rows: Rows a batch; by default as many as memory has room for, at most 65,536.
        partition_rows: About how many rows are kept as one partition; a crash costs the partitions under way.
        order_column: Name of a further column, int64, with each row's number from 0: for warehouses whose tables
            have no order of their own.
        folder: Where partitions are kept until the end, on storage that all workers see; `runs/batch/…` without. It
            is removed at the end.
        commit: Id of the write, as in `Warehouse.write`; by default one of this prediction's own.
        progress: Called with the rows done, all rows (0 where that is not known) and a text.

    Raises:
        CheckpointError: There is no such predictor.
        ClusterError: Workers died too often.
        ColumnNotFoundError: The predictor reads a column that is not there.
        ConfigError: The arguments do not fit together, or a class of your own cannot be made.
        DataError: More rows cannot be predicted than may be, or the output's table has other columns.
        LockedError: The same table is being predicted by another process.
        ResourceError: There are fewer CPUs or GPUs than the workers take.
        StorageError: Something cannot be read or written.
    """
    began = time.perf_counter()
    scaling = scaling or BatchScaling()
    target = _Target.of(output, rejected)
    _check_sizes(batch_rows, partition_rows)
    model, opened = find_model(predictor)
    source = as_source(data)
    schema = _output_schema(opened, source.schema, order_column)
    target.check(schema, source.schema)
    place = Path(folder) if folder is not None else target.default_folder()
    with _resources(scaling), _locked(place):
        stage = Stage(place.resolve())
        mark = {
            "predictor": model.mark,
            "data": [source.name, str(source.schema), source.num_rows, mark_of(source)],
            "output": target.mark,
            "columns": [str(schema), order_column],
            "sizes": [batch_rows, partition_rows],
            "commit": commit,
        }
        plan = stage.begin(mark, lambda: _plan(source, opened, scaling, batch_rows, partition_rows))
        most = _most(rejected, source.num_rows)
        job = Job(stage.path, source.schema, schema, plan["batch_rows"], most, order_column)
        work = _Work(job, model, opened, source, plan["partition_rows"], scaling, rejected, progress)
        try:
            done, resumed = work.run(stage)
        finally:
            remove(stage.path / "predictor")
            remove(stage.path / "rows")
        target.write(stage, job, done, commit or str(plan["commit"]))
        took = time.perf_counter() - began
        result = _result(target, done, resumed, job.batch_rows, took, in_process=not scaling.most)
        stage.clear()
        remove(place)
    return result


# --- before ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """Where predictions go."""

    warehouse: Warehouse
    table: str
    mode: Mode
    partition_by: str | None
    rejected: str | None

    @classmethod
    def of(cls, output: Output | tuple[Any, str], rejected: Rejected | None) -> _Target:
        if isinstance(output, Output):
            place, table, mode, by = output.warehouse, output.table, output.mode, output.partition_by
        else:
            (place, table), mode, by = output, "replace", None
        warehouse = place if isinstance(place, Warehouse) else open_warehouse(place)
        side = None if rejected is None else rejected.table or f"{table}_rejected"
        if side == table:
            raise ConfigError(f"is the table of the predictions, {table}, as well", where="rejected.table")
        return cls(warehouse, table, mode, by, side)

    @property
    def mark(self) -> list[Any]:
        return [redact(self.warehouse.url), self.table, self.mode, self.partition_by, self.rejected]

    def default_folder(self) -> Path:
        name = "".join(letter if letter.isalnum() else "-" for letter in self.table)[:40]
        return Path("runs") / "batch" / f"{name}-{digest_of(self.warehouse.url, self.table)[:8]}"

    def check(self, output: pa.Schema, rows: pa.Schema) -> None:
        """Refuse now what the write at the end would refuse."""
        check_write(self.table, self.mode, Source(self.table, output, lambda: iter(())), self.partition_by)
        if self.mode != "replace" and self.table in _tables(self.warehouse):
            check_append(self.warehouse.schema(self.table), output, self.table)
        if self.rejected is not None and (taken := {ROW, REASON} & set(rows.names)):
            raise DataError(
                f"the rows have a column {min(taken)!r}, which the table of rejected rows adds",
                where=self.rejected,
                hint="Rename it",
            )

    def write(self, stage: Stage, job: Job, done: list[Done], commit: str) -> None:
        """Write both tables, the predictions last: they say that it is over."""
        if self.rejected is not None:
            rows = stage.source(self.rejected, "rejected", rejected_schema(job.input), done)
            mode: Mode = "replace" if self.mode == "replace" else "append"
            self.warehouse.write(self.rejected, rows, mode=mode, commit=commit)
        rows = stage.source(self.table, "part", job.output, done)
        self.warehouse.write(self.table, rows, mode=self.mode, partition_by=self.partition_by, commit=commit)


def _tables(warehouse: Warehouse) -> list[str]:
    from sp_ray_ml.errors import WarehouseError

    try:
        return warehouse.tables()
    except WarehouseError:  # there is none yet: the write makes it
        return []


def _check_sizes(batch_rows: int | None, partition_rows: int | None) -> None:
    for name, value in (("batch_rows", batch_rows), ("partition_rows", partition_rows)):
        if value is not None and value < 1:
            raise ConfigError(f"is {value}, at least 1 row is needed", where=name)
    if partition_rows is not None and partition_rows > BLOCK_ROWS and partition_rows % BLOCK_ROWS:
        raise ConfigError(f"{partition_rows:,} is no multiple of {BLOCK_ROWS:,}", where="partition_rows")


def _output_schema(predictor: Predictor, schema: pa.Schema, order_column: str | None) -> pa.Schema:
    import pyarrow as pa

    output = output_schema(predictor, schema)
    if order_column is None:
        return output
    if order_column in output.names:
        raise ConfigError(f"the predictions have a column {order_column!r} already", where="order_column")
    return output.append(pa.field(order_column, pa.int64()))


def _most(rejected: Rejected | None, rows: int | None) -> int | None:
    """How many rows may be rejected; of an unknown number of rows, a share is judged as they are done."""
    if rejected is None:
        return None
    if isinstance(rejected.most, int):
        return rejected.most
    return sys.maxsize if rows is None else math.floor(rejected.most * rows + 1e-9)


def _resources(scaling: BatchScaling) -> Any:
    """Ray for as long as it is needed; refuses what would wait for ever."""
    from sp_ray_ml.train._resources import check_resources

    try:
        check_resources(scaling.as_training())
    except ResourceError as error:
        raise ResourceError(
            error.message, where="scaling", hint="Lower workers, or workers=0 to predict in this process"
        ) from None
    if not scaling.most:
        return nullcontext()
    from sp_ray_ml.train.context import ray_running

    return ray_running()


def _plan(
    source: Source,
    predictor: Predictor,
    scaling: BatchScaling,
    batch_rows: int | None,
    partition_rows: int | None,
) -> dict[str, int]:
    """Sizes, by the memory and the workers of the first start of a job; later ones keep to them."""
    from sp_ray_ml.train._resources import available

    a_row = row_bytes(source)
    memory = memory_of(scaling, available() if scaling.most else None)
    batch = batch_rows or batch_rows_for(a_row, predictor, memory)
    size = partition_rows or partition_rows_for(a_row, batch, source.num_rows, scaling.most)
    return {"batch_rows": batch, "partition_rows": size}


def _locked(folder: Path) -> Lock:
    with storage_errors(folder):
        if folder.is_dir():
            strange = [entry.name for entry in folder.iterdir() if entry.name != ".lock"]
            if strange and not (folder / "job.json").exists() and not (folder / ".lock").exists():
                raise ConfigError(
                    f"the folder has other files in it, such as {strange[0]}",
                    where=str(folder),
                    hint="Give a new folder: it is removed at the end",
                )
        folder.mkdir(parents=True, exist_ok=True)
    return Lock(folder / ".lock", "this batch prediction")


# --- the work ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    job: Job
    model: Model
    predictor: Predictor
    source: Source
    size: int
    scaling: BatchScaling
    rejected: Rejected | None
    progress: Callable[[float, float, str], None] | None

    def run(self, stage: Stage) -> tuple[list[Done], set[int]]:
        """All partitions' records in their order, and the numbers of those that were there before."""
        records = stage.records()
        kept: dict[int, Done] = {}
        new: dict[int, Done] = {}
        with closing(self._run(self._parts(stage, records, kept))) as records_of:
            for done in records_of:
                new[done.number] = done
                self._judge(kept, new)
                self._tell(kept, new)
        every = {**kept, **new}
        self._judge(kept, new, last=True)
        return [every[number] for number in sorted(every)], set(kept)

    def _parts(self, stage: Stage, records: dict[int, Done], kept: dict[int, Done]) -> Iterator[Part]:
        """The partitions that are to do; those that are done go to `kept`."""
        pieces = pieces_of(self.source, self.size)
        if pieces is not None:
            for part in pieces:
                found = records.get(part.number)
                if found is not None and found.rows == part.source.num_rows:
                    kept[part.number] = found
                else:
                    yield part
            return

        def there(number: int, checksum: int) -> bool:
            found = records.get(number)
            if found is None or found.checksum != checksum:
                return False
            kept[number] = found
            return True

        parts = stream_parts(self.source, self.size, there)
        yield from copied_parts(parts, stage.path / "rows") if self.scaling.most else parts

    def _run(self, parts: Iterator[Part]) -> Generator[Done]:
        if not self.scaling.most:
            yield from Engine(self.job, self.predictor, time.time()).run(parts)
            return
        from sp_ray_ml.inference._batch_ray import run_on_ray

        model = sent(self.model, self.predictor, self.job.folder)
        path = [*sys.path, str(Path.cwd())]
        yield from run_on_ray(list(parts), self.job, model, self.scaling, path)

    def _judge(self, kept: dict[int, Done], new: dict[int, Done], *, last: bool = False) -> None:
        """Whether too many rows are rejected, over all workers and starts."""
        if self.rejected is None:
            return
        every = [*kept.values(), *new.values()]
        found, most = sum(done.rejected for done in every), self.job.most_rejected
        assert most is not None
        if isinstance(self.rejected.most, float) and self.source.num_rows is None:
            most = math.floor(self.rejected.most * sum(done.rows for done in every) + 1e-9)
            most = most if last else max(most, _FEW)
        if found > most:
            raise too_many(
                most, self.source.name, f"see {ROW} and {REASON} of the files kept in {self.job.folder}"
            )

    def _tell(self, kept: dict[int, Done], new: dict[int, Done]) -> None:
        if self.progress is not None:
            rows = sum(done.rows for done in (*kept.values(), *new.values()))
            self.progress(rows, self.source.num_rows or 0, f"{rows:,} rows")


def _result(
    target: _Target, done: list[Done], resumed: set[int], batch: int, seconds: float, *, in_process: bool
) -> BatchResult:
    new = [record for record in done if record.number not in resumed]
    spans: dict[str, tuple[float, float]] = {}
    for record in new:
        begin, end = spans.get(record.worker, (record.began, record.ended))
        spans[record.worker] = (min(begin, record.began), max(end, record.ended))
    worked = sum(end - begin for begin, end in spans.values())
    busy = [record.device_seconds for record in new if record.device_seconds is not None]
    return BatchResult(
        table=target.table,
        rows=sum(record.rows for record in done),
        written=sum(record.written for record in done),
        rejected=sum(record.rejected for record in done),
        rejected_table=target.rejected,
        seconds=seconds,
        rows_per_second=sum(record.rows for record in new) / seconds,
        gpu_busy=min(1.0, sum(busy) / worked) if busy and worked else None,
        worker_hours=(seconds if in_process else worked) / 3600,
        batch_rows=batch,
        partitions=len(done),
        resumed=len(resumed),
    )
