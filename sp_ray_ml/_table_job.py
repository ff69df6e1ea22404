"""From a table to predictions of one of its columns written back, as a straight list of steps.

read → split → train → evaluate → predict → write
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sp_ray_ml._job import (
    PlannedStep,
    RunResult,
    about,
    input_fingerprints,
    planned_write,
    result_of,
    write_outputs,
)
from sp_ray_ml._runs import RunFolder, Step, StepContext
from sp_ray_ml.config import near_match, redact
from sp_ray_ml.errors import ColumnNotFoundError, ConfigError, DataError
from sp_ray_ml.storage import read_json
from sp_ray_ml.train.table import TableTrainer

if TYPE_CHECKING:
    from sp_ray_ml.data.settings import Table
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking.run import Run
    from sp_ray_ml.train.table_predictor import TablePredictor

__all__ = ["plan", "preflight", "run"]

_LOOK_ROWS = 10_000
_MOST_BARS = 30


def run(p: Pipeline, folder: RunFolder, tracked: Run) -> RunResult:
    """The job, from top to bottom."""
    from sp_ray_ml import _steps, _table_steps
    from sp_ray_ml.data.warehouse import open_warehouse

    settings, trainer = _table(p), _trainer(p)
    warehouse = open_warehouse(p.warehouse)
    marks = input_fingerprints(warehouse, _queries(p))
    tracked.log_tags({f"data.{query}": mark for query, mark in marks.items()})

    read = folder.step(
        "read",
        lambda step: _table_steps.read(step, warehouse, settings),
        inputs=[settings.table, marks[settings.table]],
        code=["data", "_table_steps.py"],
    )
    rows = _table_steps.Rows.load(read.folder)
    split = folder.step(
        "split",
        lambda step: _table_steps.split(step, rows, p.split, settings, p.seed),
        inputs=[p.split, settings, p.seed],
        after=[read],
    )
    label = _steps.load_labels(split.folder)
    train = folder.step(
        "train",
        lambda step: _table_steps.train(
            step,
            trainer,
            rows,
            label,
            settings,
            seed=p.seed,
            on_epoch=_on_epoch(step, tracked),
            about=about(p, folder),
            tune=p.tune,
            tracked=tracked,
        ),
        inputs=[trainer, p.seed, *([] if p.tune is None else [p.tune])],
        after=[split],
        code=["train", "metrics"],
    )
    predictor = _table_steps.load_predictor(train.folder)
    evaluated = folder.step(
        "evaluate",
        lambda step: _table_steps.measure(step, predictor, rows, label, p.evaluate, settings),
        inputs=[p.evaluate],
        after=[train],
        code=["inference", "metrics"],
    )
    table = _steps.load_metrics(evaluated.folder)
    _track_results(tracked, p, table, train, predictor, rows)
    outputs: dict[str, str] = {}
    if p.predict is not None:
        predict = p.predict
        predicted = folder.step(
            "predict",
            lambda step: _table_steps.predict(step, predictor, rows, warehouse, predict.rows),
            inputs=[predict.rows, marks.get(predict.rows or "")],
            after=[train],
            code=["inference/_batch_run.py", "inference/_batch_stage.py"],
        )
        outputs = write_outputs(
            folder,
            predict,
            predicted,
            lambda step, commit: _table_steps.write(step, predicted.folder, predict, commit),
        )
    return result_of(table, outputs, folder)


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
    place, steps = redact(p.warehouse), p.folder / "steps"
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


def _queries(p: Pipeline) -> list[str]:
    rows = p.predict.rows if p.predict is not None else None
    return list(dict.fromkeys([_table(p).table, *([rows] if rows else [])]))


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
        _check_partition(p.predict.output.partition_by, rows or settings.table, warehouse)


def _check_partition(column: str | None, query: str, warehouse: Warehouse) -> None:
    """Find that predictions cannot be partitioned so: they have the columns of the rows, and those that are added."""
    from sp_ray_ml.data._schema import check_partition_column

    if column is None or column == "prediction":  # whose type training finds
        return
    place, schema = "predict.output.partition_by", warehouse.schema(query)
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


def _track_results(
    tracked: Run,
    p: Pipeline,
    table: Mapping[str, Mapping[str, Any]],
    train: Step,
    predictor: TablePredictor,
    rows: Any,
) -> None:
    for name, row in table.items():
        tracked.log_metrics(row if name == "model" else {f"{name}/{metric}": v for metric, v in row.items()})
    shown = {name: {k: v for k, v in row.items() if k != "rows"} for name, row in table.items()}
    tracked.log_plot("metrics", shown, "plots/metrics.png", f"{p.name}: test rows")
    if history := read_json(train.folder / "history.json"):
        tracked.log_plot("history", history, "plots/history.png", f"{p.name}: training")
    if importance := read_json(train.folder / "plots.json").get("importance"):
        title = f"{p.name}: what the model goes by"
        largest = dict(list(importance.items())[:_MOST_BARS])
        tracked.log_plot("importance", largest, "plots/importance.png", title)
    if p.tracking.model:
        tracked.log_model(
            train.folder / "predictor",
            signature=predictor.mlflow_signature(),
            input_example=predictor.input_example(rows.table.slice(0, _LOOK_ROWS)),
            register=p.tracking.register,
        )
