"""A batch prediction until its write: the partitions that are missing, predicted in this process or by actors of Ray."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.data._store import store_at
from sp_ray_ml.inference._batch_engine import REASON, ROW, Engine, Job, too_many
from sp_ray_ml.inference._batch_model import Model, output_schema, sent
from sp_ray_ml.inference._batch_parts import copied_parts, pieces_of, store_parts, stream_parts
from sp_ray_ml.inference._batch_size import batch_rows_for, memory_of, partition_rows_for, row_bytes
from sp_ray_ml.inference._batch_stage import TRIES, Stage
from sp_ray_ml.inference.batch_settings import BatchScaling

if TYPE_CHECKING:
    import pyarrow as pa

    from sp_ray_ml.data.source import Source
    from sp_ray_ml.inference._batch_parts import Part
    from sp_ray_ml.inference._batch_stage import Done
    from sp_ray_ml.inference.batch_settings import Rejected
    from sp_ray_ml.train.predictor import Predictor

__all__ = ["Work", "keep_predictions"]

_FEW = 1_000
"""Rejected rows below which a share of rows whose number is not known yet is not judged."""


@dataclass(frozen=True)
class Work:
    """What is predicted, and where.

    Attributes:
        predictor: Loaded in this process.
        model: How others get it.
        source: The rows.
        schema: Columns of the predictions.
        scaling: How many workers.
        rejected: How many rows may fail.
        order_column: Name of a column with the rows' numbers, or None.
        progress: Called with the rows done, all rows and a text.
    """

    predictor: Predictor
    model: Model
    source: Source
    schema: pa.Schema
    scaling: BatchScaling
    rejected: Rejected | None = None
    order_column: str | None = None
    progress: Callable[[float, float, str], None] | None = None

    def run(
        self, stage: Stage, mark: Mapping[str, Any], batch_rows: int | None, partition_rows: int | None
    ) -> tuple[str, list[Done], set[int]]:
        """Predict what is not there yet.

        Args:
            stage: Keeps it.
            mark: What makes it the same as what an earlier start has left there.
            batch_rows: Rows a batch, None by the memory.
            partition_rows: Rows a partition, None by the memory and the workers.

        Returns:
            The id of the write at the end, all partitions' records in their order, and the numbers of those that were
            there before.
        """
        plan = stage.begin(mark, lambda: self._plan(batch_rows, partition_rows))
        job = Job(
            stage.store, self.source.schema, self.schema, plan["batch_rows"], self._most(), self.order_column
        )
        stage.drop("predictor", "rows", TRIES)  # of a start that was killed
        try:
            done, kept = self._done(stage, job, plan["partition_rows"])
        finally:
            stage.drop("predictor", "rows", TRIES)
        return str(plan["commit"]), done, kept

    def _plan(self, batch_rows: int | None, partition_rows: int | None) -> dict[str, int]:
        """Sizes, by the memory and the workers of the first start of a job; later ones keep to them."""
        from sp_ray_ml.train._resources import available

        a_row = row_bytes(self.source)
        memory = memory_of(self.scaling, available() if self.scaling.most else None)
        batch = batch_rows or batch_rows_for(a_row, self.predictor, memory)
        size = partition_rows or partition_rows_for(a_row, batch, self.source.num_rows, self.scaling.most)
        return {"batch_rows": batch, "partition_rows": size}

    def _most(self) -> int | None:
        """How many rows may be rejected; of an unknown number of rows, a share is judged as they are done."""
        rejected, rows = self.rejected, self.source.num_rows
        if rejected is None:
            return None
        if isinstance(rejected.most, int):
            return rejected.most
        return sys.maxsize if rows is None else math.floor(rejected.most * rows + 1e-9)

    def _done(self, stage: Stage, job: Job, size: int) -> tuple[list[Done], set[int]]:
        records = stage.records()
        kept: dict[int, Done] = {}
        new: dict[int, Done] = {}
        with closing(self._run(job, self._parts(stage, records, kept, size))) as records_of:
            for done in records_of:
                new[done.number] = done
                self._judge(job, kept, new)
                self._tell(kept, new)
        every = {**kept, **new}
        self._judge(job, kept, new, last=True)
        return [every[number] for number in sorted(every)], set(kept)

    def _parts(
        self, stage: Stage, records: dict[int, Done], kept: dict[int, Done], size: int
    ) -> Iterator[Part]:
        """The partitions that are to do; those that are done go to `kept`."""
        pieces = pieces_of(self.source, size)
        if (
            pieces is None and self.scaling.most
        ):  # in this process all streams at once are faster than one by one
            pieces = store_parts(self.source, stage.store, records)
        if pieces is not None:
            for part in pieces:
                found = records.get(part.number)
                same = found is not None and found.checksum == part.checksum
                if found is not None and same and part.source.num_rows in (found.rows, None):
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

        parts = stream_parts(self.source, size, there)
        yield from copied_parts(parts, stage.store) if self.scaling.most else parts

    def _run(self, job: Job, parts: Iterator[Part]) -> Generator[Done]:
        if not self.scaling.most:
            yield from Engine(job, self.predictor, time.time()).run(parts)
            return
        from sp_ray_ml.inference._batch_ray import run_on_ray

        model = sent(self.model, self.predictor, job.store)
        path = [*sys.path, str(Path.cwd())]
        yield from run_on_ray(list(parts), job, model, self.scaling, path)

    def _judge(self, job: Job, kept: dict[int, Done], new: dict[int, Done], *, last: bool = False) -> None:
        """Whether too many rows are rejected, over all workers and starts."""
        if self.rejected is None:
            return
        every = [*kept.values(), *new.values()]
        found, most = sum(done.rejected for done in every), job.most_rejected
        assert most is not None
        if isinstance(self.rejected.most, float) and self.source.num_rows is None:
            most = math.floor(self.rejected.most * sum(done.rows for done in every) + 1e-9)
            most = most if last else max(most, _FEW)
        if found > most:
            raise too_many(
                most, self.source.name, f"see {ROW} and {REASON} of the files kept in {job.store.url}"
            )

    def _tell(self, kept: dict[int, Done], new: dict[int, Done]) -> None:
        if self.progress is not None:
            rows = sum(done.rows for done in (*kept.values(), *new.values()))
            self.progress(rows, self.source.num_rows or 0, f"{rows:,} rows")


def keep_predictions(
    predictor: Predictor, source: Source, folder: Path, progress: Callable[[float, float, str], None]
) -> int:
    """Predict in this process into a folder of Parquet files, and go on where an earlier call ended.

    Args:
        predictor: Loaded.
        source: The rows.
        folder: Has nothing but the predictions in the end, in their order by the files' names.
        progress: As of `Work`.

    Returns:
        How many rows of predictions there are.

    Raises:
        DataError: A row cannot be predicted, or the rows are not what the predictor reads.
        StorageError: It cannot be written.
    """
    stage = Stage(store_at(folder.resolve()))
    schema = output_schema(predictor, source.schema)
    work = Work(predictor, Model("", given=predictor), source, schema, BatchScaling(), progress=progress)
    mark = {"data": [source.name, str(source.schema), source.num_rows, source.mark()]}
    _, done, _ = work.run(stage, mark, None, None)
    stage.finish(schema, done)
    return sum(record.written for record in done)
