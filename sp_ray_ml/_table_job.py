"""From a table to predictions of one of its columns written back, as a straight list of steps.

read → split → train → evaluate → predict → write
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sp_ray_ml._job import (
    JobStep,
    PlannedStep,
    RunResult,
    Work,
    about,
    planned_write,
    run_steps,
    table_fingerprints,
)
from sp_ray_ml._remote import below
from sp_ray_ml._runs import RunFolder, StepContext
from sp_ray_ml.config import near_match, redact
from sp_ray_ml.errors import ColumnNotFoundError, ConfigError, DataError
from sp_ray_ml.storage import read_json
from sp_ray_ml.train.table import TableTrainer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sp_ray_ml._table_steps import Rows
    from sp_ray_ml.data.settings import Table
    from sp_ray_ml.data.source import Source
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking.run import Run
    from sp_ray_ml.train.table_predictor import TablePredictor

__all__ = ["TableWork", "plan", "preflight", "run", "steps"]

_LOOK_ROWS = 10_000
_MOST_BARS = 30


@dataclass
class TableWork(Work):
    """What the steps share. What one left is opened when another asks for it, and once."""

    @cached_property
    def warehouse(self) -> Warehouse:
        """Where the table is."""
        from sp_ray_ml.data.warehouse import open_warehouse

        return open_warehouse(self.pipeline.warehouse)

    @cached_property
    def rows(self) -> Rows:
        """Of `read`."""
        from sp_ray_ml._table_steps import Rows

        return Rows.load(self.output("read"))

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """Of `split`."""
        from sp_ray_ml._step_output import load_labels

        return load_labels(self.output("split"))

    @cached_property
    def predictor(self) -> TablePredictor:
        """Of `train`."""
        from sp_ray_ml._table_steps import load_predictor

        return load_predictor(self.output("train"))


def run(p: Pipeline, folder: RunFolder, tracked: Run) -> RunResult:
    """The job, from top to bottom."""
    listed = steps(p)
    return run_steps(listed, TableWork(p, folder, tracked, table_fingerprints(p, listed)))


def steps(p: Pipeline) -> list[JobStep[TableWork]]:
    """The steps in their order."""
    from sp_ray_ml import _table_steps

    settings, trainer = _table(p), _trainer(p)
    listed: list[JobStep[TableWork]] = [
        JobStep(
            "read",
            lambda step, work: _table_steps.read(step, work.warehouse, settings),
            tables=[settings.table],
            code=["data", "_table_steps.py"],
            then=lambda work: work.rows,
        ),
        JobStep(
            "split",
            lambda step, work: _table_steps.split(step, work.rows, p.split, settings, p.seed),
            reads=["read"],
            inputs=[p.split, settings, p.seed],
            then=lambda work: work.label,
        ),
        JobStep(
            "train",
            lambda step, work: _table_steps.train(
                step,
                trainer,
                work.rows,
                work.label,
                settings,
                seed=p.seed,
                on_epoch=_on_epoch(step, work.tracked),
                about=about(p, work.folder),
                tune=p.tune,
                tracked=work.tracked,
            ),
            reads=["read", "split"],
            inputs=[trainer, p.seed, *([] if p.tune is None else [p.tune])],
            code=["train", "metrics"],
            then=lambda work: work.predictor,
        ),
        JobStep(
            "evaluate",
            lambda step, work: _table_steps.measure(
                step, work.predictor, work.rows, work.label, p.evaluate, settings
            ),
            reads=["read", "split", "train"],
            inputs=[p.evaluate],
            code=["inference", "metrics"],
            then=_track_results,
        ),
    ]
    if (predict := p.predict) is not None:
        listed += [
            JobStep(
                "predict",
                lambda step, work: _table_steps.predict(
                    step, work.predictor, work.rows, work.warehouse, predict.rows
                ),
                reads=["read", "train"],
                tables=[predict.rows] if predict.rows else [],
                inputs=[predict.rows],
                code=["inference/_batch_run.py", "inference/_batch_stage.py"],
            ),
            JobStep(
                "write",
                lambda step, work: _table_steps.write(step, work.output("predict"), predict, work.commit),
                reads=["predict"],
                inputs=[predict],
                keep=False,
            ),
        ]
    return listed


def plan(p: Pipeline) -> list[PlannedStep]:
    """What each step will read and write, after a look at the input's tables and columns.

    Raises:
        TableNotFoundError: A table is not there.
        ColumnNotFoundError: A column is not there.
        WarehouseError: The warehouse cannot be opened.
    """
    from sp_ray_ml.data.warehouse import open_warehouse

    warehouse = open_warehouse(p.warehouse)
    _check_columns(p, warehouse)
    place, steps = redact(p.warehouse), below(p.folder, "steps")
    planned = [
        PlannedStep("read", [f"{place}: {_table(p).table}"], [f"{steps}/read"]),
        PlannedStep("split", ["read"], [f"{steps}/split"]),
        PlannedStep("train", ["read", "split"], [f"{steps}/train/predictor"]),
        PlannedStep("evaluate", ["read", "split", "train"], [f"{steps}/evaluate/metrics.json"]),
    ]
    if p.predict is not None:
        rows = "read" if p.predict.rows is None else f"{place}: {p.predict.rows}"
        planned += [
            PlannedStep("predict", [rows, "train"], [f"{steps}/predict"]),
            planned_write(p.predict),
        ]
    return planned


def preflight(p: Pipeline) -> None:
    """What can be known to fail before any work is done."""
    from sp_ray_ml.train._resources import available, check_resources, check_tuning

    scaling = _trainer(p).scaling
    if p.tune is None:
        check_resources(scaling)
    else:
        check_tuning(scaling, p.tune.count, p.tune.max_concurrent, available(scaling))


def _table(p: Pipeline) -> Table:
    assert p.table is not None  # this job is that of a `table`
    return p.table


def _trainer(p: Pipeline) -> TableTrainer:
    if not isinstance(p.train, TableTrainer):
        raise ConfigError(f"{type(p.train).__name__} cannot learn from a table", where="train.kind")
    return p.train


def _check_columns(p: Pipeline, warehouse: Warehouse) -> None:
    """Find columns that are not there now, and not after the training."""
    settings, trainer = _table(p), _trainer(p)
    there = warehouse.schema(settings.table).names
    own = {"table.time": settings.time, "table.id": settings.id, "train.label": trainer.label}
    named = {**own, "train.weight": trainer.weight}
    features = [c for feature in trainer.features or () for c in feature.columns]
    where = [(place, name) for place, name in named.items() if name]
    where += [("evaluate.by", name) for name in p.evaluate.by]
    _require(where + [("train.features", name) for name in features], there, settings.table)
    if p.predict is not None:
        rows = p.predict.rows
        if trainer.features is None:
            features = [name for name in there if name not in named.values()]
        if rows is not None:
            _require([("predict.rows", name) for name in features], warehouse.schema(rows).names, rows)
        if p.predict.output.partition_by == "prediction":
            _check_classes(trainer, warehouse.source(settings.table))
        else:
            _check_partition(p.predict.output.partition_by, rows or settings.table, warehouse)


_PARTITION = "predict.output.partition_by"


def _check_classes(trainer: TableTrainer, rows: Source) -> None:
    """Find that the predictions will be numbers with fractions, which no table is partitioned by."""
    from sp_ray_ml.train._table_label import task_of

    if task_of(rows, trainer.label, trainer.task) == "regression":
        raise DataError(
            f"the predictions of {trainer.label!r} are numbers with fractions, and a table cannot be partitioned by them",
            where=_PARTITION,
            hint="Name a column of the rows with integers, booleans, text, days or times. If the label is a class: "
            "train.task=classification",
        )


def _check_partition(column: str | None, query: str, warehouse: Warehouse) -> None:
    """Find that predictions cannot be partitioned so: they have the columns of the rows, and those that are added."""
    from sp_ray_ml.data._schema import check_partition_column

    if column is None:
        return
    place, schema = _PARTITION, warehouse.schema(query)
    if column in {"probability", "probabilities"}:
        raise DataError("a table cannot be partitioned by probabilities", where=place)
    _require([(place, column)], [*schema.names, "prediction"], query)
    check_partition_column(schema.field(column), place)


def _require(wanted: list[tuple[str, str]], there: list[str], table: str) -> None:
    for where, name in wanted:
        if name not in there:
            have = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
            raise ColumnNotFoundError(
                f"{table} has no column {name!r}{near_match(name, there)}",
                where=where,
                hint=f"It has: {have}",
            )


def _on_epoch(step: StepContext, tracked: Run) -> Callable[[Mapping[str, float]], None]:
    def on_epoch(metrics: Mapping[str, float]) -> None:
        epoch, epochs = int(metrics["epoch"]), metrics.get("epochs", 0)
        values = {name: value for name, value in metrics.items() if name not in {"epoch", "epochs"}}
        tracked.log_metrics(
            {name if "/" in name else f"train/{name}": value for name, value in values.items()}, step=epoch
        )
        shown = [f"{n} {v:.4f}" for n, v in values.items() if n == "loss" or n.startswith("validation/")]
        again = "again on all rows, " if any(name.startswith("refit/") for name in values) else ""
        step.progress(epoch, epochs, ", ".join([f"{again}epoch {epoch}", *shown[:2]]))

    return on_epoch


def _track_results(work: TableWork) -> None:
    from sp_ray_ml._step_output import load_metrics

    p, tracked, folder = work.pipeline, work.tracked, work.output("train")
    table = load_metrics(work.output("evaluate"))
    for name, row in table.items():
        tracked.log_metrics(row if name == "model" else {f"{name}/{metric}": v for metric, v in row.items()})
    shown = {name: {k: v for k, v in row.items() if k != "rows"} for name, row in table.items()}
    tracked.log_plot("metrics", shown, "plots/metrics.png", f"{p.name}: test rows")
    if history := read_json(folder / "history.json"):
        tracked.log_plot("history", history, "plots/history.png", f"{p.name}: training")
    if importance := read_json(folder / "plots.json").get("importance"):
        title = f"{p.name}: what the model goes by"
        largest = dict(list(importance.items())[:_MOST_BARS])
        tracked.log_plot("importance", largest, "plots/importance.png", title)
    if p.tracking.model:
        tracked.log_model(
            folder / "predictor",
            signature=work.predictor.mlflow_signature(),
            input_example=work.predictor.input_example(work.rows.table.slice(0, _LOOK_ROWS)),
            register=p.tracking.register,
        )
