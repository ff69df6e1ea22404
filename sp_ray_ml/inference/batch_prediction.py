"""`batch_predict`: predictions for a table of any size, written whole or not at all, in this process or on Ray.

    rows ─▶ partitions ─┬─▶ read ─▶ prepare ─▶ model ─▶ keep ─┬─▶ one write: the table appears at once
                        └─▶ …  threads of this process,       ┘   rejected rows go to a table of their own
                               or actors of Ray Data

Partitions that are done are kept in a folder until the end, so that a prediction that was broken off goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._remote import is_remote
from sp_ray_ml.data._store import LocalStore, store_at
from sp_ray_ml.data.source import BLOCK_ROWS, as_source
from sp_ray_ml.errors import ConfigError, ResourceError
from sp_ray_ml.inference._batch_model import find_model, output_schema
from sp_ray_ml.inference._batch_run import Work
from sp_ray_ml.inference._batch_stage import Done, Stage
from sp_ray_ml.inference._batch_target import Target
from sp_ray_ml.inference.batch_settings import BatchScaling, Rejected
from sp_ray_ml.inference.settings import Output
from sp_ray_ml.storage import remove

if TYPE_CHECKING:
    import os

    import pyarrow as pa

    from sp_ray_ml.train.predictor import Predictor

__all__ = ["BatchResult", "batch_predict"]


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
            Dataset. Parquet is read in partitions by the workers themselves, and so are BigQuery's tables and queries:
            a partition is a stream of one session, which a call that goes on finds again (six hours; later it begins
            anew). What can only be read from its start is read once by this process, for workers into `folder`; when
            it is called again, too, and compared by checksums with what is done.
        output: Where predictions go: the same settings as in a config, or warehouse (or its URL) and table.
        scaling: In this process (the default), or on how many actors.
        rejected: Where rows go that cannot be predicted, and how many there may be; without, the first is an error.
        batch_rows: Rows a batch; by default as many as memory has room for, at most 65,536.
        partition_rows: About how many rows are kept as one partition; a crash costs the partitions under way. How many
            a stream of BigQuery has BigQuery says.
        order_column: Name of a further column, int64, with each row's number from 0: for warehouses whose tables
            have no order of their own.
        folder: Where partitions are kept until the end, a path or URL that all workers see; `runs/batch/…` without. It
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
    target = Target.of(output, rejected)
    _check_sizes(batch_rows, partition_rows)
    model, opened = find_model(predictor)
    source = as_source(data)
    schema = _output_schema(opened, source.schema, order_column)
    target.check(schema, source.schema)
    stage = Stage(store_at(_absolute(folder if folder is not None else target.default_folder())))
    stage.check_own()
    with _resources(scaling), stage.store.lock("", "this batch prediction"):
        mark = {
            "predictor": model.mark,
            "data": [source.name, str(source.schema), source.num_rows, source.mark()],
            "output": target.mark,
            "columns": [str(schema), order_column],
            "sizes": [batch_rows, partition_rows],
            "commit": commit,
        }
        work = Work(opened, model, source, schema, scaling, rejected, order_column, progress)
        commit_id, done, resumed = work.run(stage, mark, batch_rows, partition_rows)
        target.write(stage, schema, source.schema, done, commit or commit_id, order_column)
        took = time.perf_counter() - began
        result = _result(target, done, resumed, took, in_process=not scaling.most)
        stage.clear()
        if isinstance(stage.store, LocalStore):
            remove(stage.store.path)
    return result


# --- before ------------------------------------------------------------------------------------------------------


def _absolute(folder: str | os.PathLike[str]) -> str:
    """Workers have other working directories."""
    return str(folder) if is_remote(folder) else str(Path(folder).expanduser().absolute())


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


def _resources(scaling: BatchScaling) -> Any:
    """Ray for as long as it is needed; refuses what would wait for ever."""
    from sp_ray_ml.train._resources import check_resources

    try:
        check_resources(scaling.as_training())
    except ResourceError as error:
        where = (error.where or "scaling").removeprefix("train.")
        fewer = "Lower workers, or workers=0 to predict in this process"
        raise ResourceError(
            error.message, where=where, hint=fewer if where == "scaling" and scaling.most else error.hint
        ) from None
    if not scaling.most:
        return nullcontext()
    from sp_ray_ml.train._ray_start import ray_running

    return ray_running()


def _result(
    target: Target, done: list[Done], resumed: set[int], seconds: float, *, in_process: bool
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
        batch_rows=max((record.batch_rows for record in done), default=0),
        partitions=len(done),
        resumed=len(resumed),
    )
