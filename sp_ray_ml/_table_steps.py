"""The steps of a pipeline on a table: each a function from typed inputs to files in its folder and a summary."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml._step_output import keep_labels, output_of
from sp_ray_ml.data._columns import nanoseconds
from sp_ray_ml.data.arrow_files import read_arrow
from sp_ray_ml.data.source import BLOCK_ROWS, Source, as_source
from sp_ray_ml.data.splits import TEST, TRAIN, VALIDATION, Split, check_no_leakage
from sp_ray_ml.data.warehouse import open_warehouse
from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.inference._batch_run import keep_predictions
from sp_ray_ml.inference._evaluation_groups import Found, RowGroups, Segments
from sp_ray_ml.inference._evaluation_job import RowUnits, segment_columns
from sp_ray_ml.inference.evaluators import Classification, Regression, RowEvaluator
from sp_ray_ml.metrics.supervised import ClassificationMetrics
from sp_ray_ml.storage import write_json
from sp_ray_ml.train.predictor import Predictor
from sp_ray_ml.train.table_predictor import TablePredictor

if TYPE_CHECKING:
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.settings import Table
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.inference.settings import Evaluate, Predict
    from sp_ray_ml.tracking.run import Run
    from sp_ray_ml.train._table_spec import Target
    from sp_ray_ml.train.table import OnEpoch, TableTrainer, TrainResult
    from sp_ray_ml.train.tuning import Trial, Tune, TuneResult

__all__ = ["Rows", "load_predictor", "measure", "predict", "read", "split", "train", "write"]

_ROWS = "rows.arrow"
_PREDICTIONS = "predictions"
_TRUTH = "truth"


# --- read -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """What the read step leaves: the rows as they were, through the page cache.

    Attributes:
        table: All of them; memory-mapped.
    """

    table: pa.Table

    @classmethod
    def load(cls, folder: Path) -> Rows:
        """Open what `read` wrote."""
        with output_of(folder):
            return cls(read_arrow(folder / _ROWS))

    def source(self, mask: NDArray[np.bool_] | None = None, columns: Sequence[str] | None = None) -> Source:
        """Some rows in their order, or all of them, as a stream."""
        table = self.table if columns is None else self.table.select(list(columns))

        def stream() -> Iterator[pa.RecordBatch]:
            at = 0
            for batch in table.to_batches(max_chunksize=BLOCK_ROWS):
                end = at + batch.num_rows
                yield batch if mask is None else batch.filter(pa.array(mask[at:end]))
                at = end

        return Source(
            "table", table.schema, stream, num_rows=table.num_rows if mask is None else int(mask.sum())
        )


def read(context: StepContext, warehouse: Warehouse, settings: Table) -> dict[str, Any]:
    """Copy the rows, so that all later steps see the same ones however the warehouse changes meanwhile.

    Raises:
        DataError: There are no rows.
        TableNotFoundError: The table is not there.
    """
    source = warehouse.source(settings.table)
    # A dictionary that differs from batch to batch cannot be kept in a file: such columns become what they stand for.
    schema = pa.schema([pa.field(field.name, _plain(field.type)) for field in source.schema])
    rows = 0
    with pa.OSFile(str(context.output / _ROWS), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in source.blocks():
            writer.write_table(pa.Table.from_batches([batch]).cast(schema))
            rows += batch.num_rows
            context.progress(rows, source.num_rows or 0, f"{rows:,} rows")
    if not rows:
        raise DataError(f"{settings.table} has no rows", where="table")
    return {"rows": rows, "columns": len(schema)}


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


# --- split ------------------------------------------------------------------------------------------------------


def split(context: StepContext, rows: Rows, settings: Split, columns: Table, seed: int) -> dict[str, Any]:
    """Put every row into training, validation or test.

    Raises:
        DataError: An id or a time is missing, an id is there twice, or a part would be empty.
    """
    table = rows.table
    place = np.arange(table.num_rows) if columns.id is None else _ranks(table[columns.id], columns.id)
    time = None if columns.time is None else nanoseconds(table[columns.time], f"table.time ({columns.time})")
    # To the splits a row is an event of a user of its own: equal times go by the rows' order.
    item = np.zeros(table.num_rows, np.int64)
    assignment = settings.assign(place, item, time, seed=seed)
    check_no_leakage(assignment, place, item, time)
    return keep_labels(
        context, assignment, "no row is held out for validation: training cannot choose its best epoch"
    )


def _ranks(ids: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    """The place of each row in the order of the ids."""
    where = f"table.id ({name})"
    if ids.null_count:
        raise DataError(f"{ids.null_count} of {len(ids)} rows have no id", where=where)
    counts = pc.value_counts(ids.combine_chunks())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(doubled):
        shown = ", ".join(str(value) for value in doubled[:3].to_pylist())
        raise DataError(f"{len(doubled)} ids occur more than once, such as {shown}", where=where)
    ranks = np.empty(len(ids), np.int64)
    ranks[pc.sort_indices(ids).to_numpy()] = np.arange(len(ids))
    return ranks


# --- train ------------------------------------------------------------------------------------------------------


def train(
    context: StepContext,
    trainer: TableTrainer,
    rows: Rows,
    label: NDArray[np.int8],
    columns: Table,
    seed: int,
    on_epoch: OnEpoch,
    about: Mapping[str, Any],
    tune: Tune | None = None,
    tracked: Run | None = None,
) -> dict[str, Any]:
    """Train, or tune, and seal the predictor. Goes on where an earlier start ended.

    Raises:
        DataError: The label or a column cannot be used.
        ResourceError: More workers than there are CPUs or GPUs.
        TrainingError: The loss is not finite, or a worker failed.
    """
    left_out = columns.left_out if trainer.features is None else []
    names = [name for name in rows.table.column_names if name not in left_out]
    held_out = label == VALIDATION
    train, validation = (
        rows.source(label == TRAIN, names),
        rows.source(held_out, names) if held_out.any() else None,
    )
    if tune is not None:
        result: TrainResult = _tuned(context, trainer, train, validation, tune, seed, about, tracked)
    else:
        result = trainer._on_a_split().fit(
            train, validation, seed=seed, folder=context.scratch, on_epoch=on_epoch, about=about
        )
    shutil.move(result.predictor_path, context.output / "predictor")
    write_json(context.output / "history.json", result.history)
    write_json(context.output / "plots.json", dict(result.plots))
    part = "validation" if held_out.any() else "training"
    return {"epochs": len(result.history), **{f"{part} {name}": v for name, v in result.metrics.items()}}


def _tuned(
    context: StepContext,
    trainer: TableTrainer,
    train: Source,
    validation: Source | None,
    settings: Tune,
    seed: int,
    about: Mapping[str, Any],
    tracked: Run | None,
) -> TuneResult:
    from sp_ray_ml.train._tune_loop import tune

    over: dict[int, Trial] = {}

    def on_trial(trial: Trial) -> None:
        if trial.status != "running":
            over[trial.number] = trial
            if trial.error:
                context.note(f"trial {trial.number} failed: {' '.join(trial.error.split())}")
        values = [t.value for t in over.values() if t.value is not None]
        found = "" if not values else f", last {values[-1]:.4f}"
        context.progress(len(over), settings.count, f"{len(over)} of {settings.count} trials{found}")

    result = tune(
        trainer,
        train,
        validation,
        settings,
        seed=seed,
        folder=context.scratch,
        on_trial=on_trial,
        run=tracked,
        options={"about": about},
        prefix="validation/",
    )
    chosen = ", ".join(f"{name} {value}" for name, value in result.params.items())
    context.note(f"the best of {len(result.trials)} trials is {result.best.number}: {chosen}")
    return result


def load_predictor(folder: Path) -> TablePredictor:
    """The predictor that `train` sealed."""
    with output_of(folder):
        predictor = Predictor.load(folder / "predictor")
    assert isinstance(predictor, TablePredictor)
    return predictor


# --- evaluate ---------------------------------------------------------------------------------------------------


def measure(
    context: StepContext,
    predictor: TablePredictor,
    rows: Rows,
    label: NDArray[np.int8],
    settings: Evaluate,
    columns: Table,
) -> dict[str, Any]:
    """Measure the model on the test rows, and a constant beside it; keep the test rows' own, for `sp-ray compare`.

    Raises:
        ConfigError: A metric is of the other task.
        DataError: A test row has a class that training has not seen.
    """
    target, test = predictor.spec.target, rows.source(label == TEST)
    name, constant = _constant(target, rows.source(label != TEST, [target.column]))
    segment_columns(settings.by, rows.table, "the table")
    own = [each for each in settings.evaluators if isinstance(each, RowEvaluator)]
    ids = [] if columns.id is None else [columns.id]
    segments = Segments.of(test, settings.by)
    units = RowUnits(context.output, [_evaluator(target), *own], ids, segments, settings.bootstrap)
    beside = _beside(target)
    for block, scores, truth in predictor.scored(test):
        if beside is not None:
            beside.update(scores, truth)
        units.add(_with_scores(block, scores, truth, target))
    found = units.finish()
    usual = _usual(beside, found)
    simple = _measure_constant(target, constant, test)
    model, baseline = (dict(usual), dict(simple[0]))
    if settings.metrics is not None:
        model, baseline = (
            _chosen({**more, **row}, settings.metrics, target.task)
            for more, row in ((found.metrics, usual), (simple[1].metrics, simple[0]))
        )
    # Of further evaluators, and of segments.
    wanted = {name: value for name, value in found.metrics.items() if name not in simple[1].metrics}
    model = {**model, **wanted, "rows": float(test.num_rows or 0)}
    write_json(context.output / "metrics.json", {"model": model, name: baseline})
    write_json(context.output / "intervals.json", found.intervals)
    return {name: value for name, value in model.items() if "/" not in name}


def _evaluator(target: Target) -> RowEvaluator:
    """What measures the rows of `_with_scores`."""
    if target.task == "regression":
        return Regression(truth=_TRUTH)
    return Classification(truth=_TRUTH, probabilities=None if len(target.classes) == 2 else "probabilities")


def _beside(target: Target) -> ClassificationMetrics | None:
    """What is measured beside the evaluator of `_evaluator`, so that the metrics are, to the bit, those of training.

    Training looks at the scores of all classes, the evaluator at what is kept of them: of two classes the probability
    of the second in 32 bits, whose complement is not quite that of the first. The values of a regression, and the area
    under a curve, are the same bits in both.
    """
    return None if target.task == "regression" else ClassificationMetrics(len(target.classes), auc=False)


def _usual(beside: ClassificationMetrics | None, found: Found) -> dict[str, float]:
    """The metrics that are there without `evaluate.metrics`: those of training."""
    names = ("rmse", "mae", "r2") if beside is None else ("auc",) if beside.classes == 2 else ()
    return {
        **({} if beside is None else beside.finish()),
        **{name: found.metrics[name] for name in names if name in found.metrics},
    }


def _with_scores(
    block: pa.RecordBatch, scores: NDArray[np.float32], truth: NDArray[Any], target: Target
) -> pa.RecordBatch:
    """The rows with what is true and what was predicted; columns of these names give way."""
    added: dict[str, Any] = {_TRUTH: pa.array(truth)}
    if target.task == "regression":
        added["prediction"] = pa.array(np.ascontiguousarray(scores[:, 0]))
    elif len(target.classes) == 2:
        added["prediction"] = pa.array(scores.argmax(axis=1))
        added["probability"] = pa.array(np.ascontiguousarray(scores[:, 1]))
    else:
        added["prediction"] = pa.array(scores.argmax(axis=1))
        added["probabilities"] = pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(scores).reshape(-1)), scores.shape[1]
        )
    columns = {name: block.column(name) for name in block.schema.names if name not in added}
    return pa.RecordBatch.from_pydict({**columns, **added})


def _chosen(row: Mapping[str, float], metrics: Sequence[str], task: str) -> dict[str, float]:
    if unknown := [name for name in metrics if name not in row]:
        raise ConfigError(
            f"{unknown[0]} is no metric of this {task}: it has {', '.join(row)}", where="evaluate.metrics"
        )
    return {name: row[name] for name in metrics}


def _constant(target: Target, source: Source) -> tuple[str, NDArray[np.float32]]:
    """What says best what a row is without looking at it: the mean, or the share of each class; [outputs]."""
    total = np.zeros(target.outputs)
    count = 0
    for block in source.blocks():
        y = target.encode(block.column(0), f"table.{target.column}")
        total += (
            y.sum(dtype=np.float64) if target.task == "regression" else np.bincount(y, minlength=len(total))
        )
        count += len(y)
    return ("mean" if target.task == "regression" else "most_frequent"), (total / count).astype(np.float32)


def _measure_constant(
    target: Target, constant: NDArray[np.float32], test: Source
) -> tuple[dict[str, float], Found]:
    beside, more = _beside(target), RowGroups([_evaluator(target)], Segments({}))
    for block in test.select([target.column]).blocks():
        truth = target.encode(block.column(0), f"table.{target.column}")
        scores = np.tile(constant, (len(truth), 1))
        if beside is not None:
            beside.update(scores, truth)
        more.update(_with_scores(block, scores, truth, target))
    found = more.finish()
    return _usual(beside, found), found


# --- predict and write ------------------------------------------------------------------------------------------


def predict(
    context: StepContext, predictor: TablePredictor, rows: Rows, warehouse: Warehouse, query: str | None
) -> dict[str, Any]:
    """Predict for all rows, or those of another table or query, into Parquet files; in bounded memory.

    Raises:
        ColumnNotFoundError: A column that the model reads is not there.
        DataError: A column has another type than in training, or a value that its preprocessor refuses.
    """
    source = rows.source() if query is None else warehouse.source(query)
    kept = context.scratch / _PREDICTIONS
    done = keep_predictions(predictor, source, kept, context.progress)
    shutil.move(kept, context.output / _PREDICTIONS)
    return {"rows": done}


def write(context: StepContext, folder: Path, settings: Predict, commit: str) -> dict[str, Any]:
    """Write the predictions into the output warehouse, all or nothing.

    Args:
        context: The step's.
        folder: Where `predict` wrote.
        settings: What and where.
        commit: Names this result: what was committed under it is not written again.
    """
    output = settings.output
    with output_of(folder):
        source = as_source(str(folder / _PREDICTIONS))
    rows = open_warehouse(output.warehouse).write(
        output.table, source, mode=output.mode, partition_by=output.partition_by, commit=commit
    )
    write_json(context.output / "written.json", {output.table: rows})
    return {"tables": [output.table], "rows": rows, "already": not rows}
