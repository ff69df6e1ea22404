"""`Pipeline`, `run` and `predict`: from a warehouse to what was predicted written back, as a straight list of steps.

    read → split → graph → features → train → evaluate → predict → write     of `events`: recommendations
    read → split ────────────────────→ train → evaluate → predict → write     of a `table`: one of its columns

Each step's output is kept in the run's folder with a fingerprint of its inputs, settings and code. A run that is
started again keeps what has not changed and goes on from there, in the same MLflow run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pydantic

from sp_ray_ml._job import PlannedStep, RunResult, tables_written
from sp_ray_ml._remote import below, check_url, is_remote
from sp_ray_ml._runs import Reporter, RunFolder, hold_run
from sp_ray_ml.cluster.run_settings import RunClusterField
from sp_ray_ml.config import (
    Custom,
    Document,
    Settings,
    check,
    document_of,
    dump,
    located,
    near_match,
    read_document,
    to_yaml,
)
from sp_ray_ml.data.settings import Events, Nodes, Table, TableField, WarehouseUrl
from sp_ray_ml.data.splits import (
    LastNSplit,
    PerUserSplit,
    RandomSplit,
    Split,
    SplitField,
    TableSplit,
    TimeSplit,
)
from sp_ray_ml.errors import ConfigError, SpRayError
from sp_ray_ml.graph.settings import GraphSettings
from sp_ray_ml.inference.settings import Evaluate, Predict
from sp_ray_ml.storage import write_text
from sp_ray_ml.tracking.settings import Tracking
from sp_ray_ml.train.pyg import PyGTrainer
from sp_ray_ml.train.table import TableTrainer
from sp_ray_ml.train.trainer import Trainer, TrainerField
from sp_ray_ml.train.tuning import Tune, check_space

if TYPE_CHECKING:
    from sp_ray_ml._predict_job import PredictResult
    from sp_ray_ml.tracking.run import Run

__all__ = ["Pipeline", "PlannedStep", "RunResult", "load_config", "plan", "predict", "run"]


def _no_default(schema: dict[str, Any]) -> None:
    """Leave out of the JSON schema a default that depends on the rest."""
    schema.pop("default", None)


def _of(info: pydantic.ValidationInfo) -> Literal["events", "table"] | None:
    """What the config is about; None where that is wrong itself."""
    if "events" not in info.data or "table" not in info.data:
        return None
    return "events" if info.data["table"] is None else "table"


def _refuse(value: Settings, of: str | None, *path: str, events: Sequence[str], table: Sequence[str]) -> None:
    """Refuse what is set of the settings that belong to the other kind of job."""
    foreign = {"table": events, "events": table}.get(of or "", ())
    message = _OF_TABLE if of == "table" else _OF_EVENTS
    default = type(value).model_fields
    if wrong := [name for name in foreign if getattr(value, name) != default[name].default]:
        raise located([((*path, name), message) for name in wrong])


_WHAT = {"events": "`events`", "table": "a `table`"}
_OF_TABLE = "is for `events`, this is a `table`"
_OF_EVENTS = "is for a `table`, these are `events`"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


class Pipeline(Settings):
    """A whole job: what is read, learned, compared and written. The YAML file has the same keys."""

    name: str = pydantic.Field(max_length=100, json_schema_extra={"pattern": f"^{_NAME}$"})
    """Name of the run and of its folder."""
    seed: int = pydantic.Field(default=0, ge=0)
    """The same seed on the same machine gives the same numbers."""
    warehouse: WarehouseUrl
    """Where the tables are: a folder of Parquet files or a DuckDB file. It is only read."""
    # What comes after `events` and `table` depends on which of the two is given: their validators look back at them.
    events: Events | None = None
    """The events, to recommend items to users. Either they or `table`."""
    table: TableField | None = pydantic.Field(default=None, validate_default=True)
    """The table, or a query, to learn a column of. Either it or `events`."""
    nodes: Nodes = Nodes()
    """Tables about users and items."""
    split: SplitField = pydantic.Field(default=None, validate_default=True, json_schema_extra=_no_default)
    """What is held out to test on; without, each user's last fifth of events, or a fifth of the table's rows at random."""
    graph: GraphSettings = GraphSettings()
    """How events become a graph."""
    train: TrainerField = pydantic.Field(default=None, validate_default=True, json_schema_extra=_no_default)
    """What is trained, and how; for `events` a GNN without."""
    tune: Tune | None = None
    """For a `table`: which of the trainer's settings are tried out, and how; the best model is kept. None trains once."""
    evaluate: Evaluate = Evaluate()
    """Metrics and baselines."""
    predict: Predict | None = None
    """Recommendations to write; none are written without."""
    tracking: Tracking = Tracking()
    """Where the run is recorded."""
    runs: str = "runs"
    """Folder of the runs' folders, or a URL of an object store: `s3://bucket/runs`, `gs://bucket/runs`."""
    cluster: RunClusterField = "auto"
    """Where the run is. `auto`: in this process; a step that uses Ray attaches to the cluster that this runs in (on its
    head, say, or where `RAY_ADDRESS` is set) and elsewhere starts it on this machine; `local` always does the latter. A
    mapping, `{name: shows}`: on a cluster on Kubernetes, found or created."""

    # Validators of one field: those of the whole model would be silent as long as any other field is wrong.
    @pydantic.field_validator("name")
    @classmethod
    def _can_name_a_folder(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError(
                f"{name!r} cannot name a folder: use letters, digits, dots, dashes and underscores, a letter or digit first"
            )
        return name

    @pydantic.field_validator("runs")
    @classmethod
    def _is_a_place(cls, runs: str) -> str:
        if is_remote(runs):
            try:
                check_url(runs)
            except ConfigError as error:
                raise ValueError(f"{error.message}. {error.hint or ''}".rstrip(". ")) from None
        return runs.removeprefix("file://")

    @pydantic.field_validator("table")
    @classmethod
    def _either_it_or_events(cls, table: Table | None, info: pydantic.ValidationInfo) -> Table | None:
        if "events" not in info.data:
            return table
        if (table is None) == (info.data["events"] is None):
            given = "both are there" if table is not None else "neither is there"
            raise ValueError(
                f"give either `events` (to recommend items) or `table` (to predict a column): {given}"
            )
        return table

    @pydantic.field_validator("nodes", "graph")
    @classmethod
    def _goes_with_events(cls, value: Settings, info: pydantic.ValidationInfo) -> Settings:
        if _of(info) == "table" and value != type(value)():
            raise ValueError(_OF_TABLE)
        return value

    @pydantic.field_validator("split", mode="before")
    @classmethod
    def _default_split(cls, split: Any, info: pydantic.ValidationInfo) -> Any:
        if split is not None:
            return split
        return RandomSplit() if _of(info) == "table" else PerUserSplit()

    @pydantic.field_validator("split")
    @classmethod
    def _split_fits(cls, split: Split, info: pydantic.ValidationInfo) -> Split:
        if _of(info) != "table":
            events = info.data.get("events")
            if isinstance(split, TableSplit) and events is not None and split.test == events.table:
                raise located([(("test",), "is the table of the training events: name another")])
            return split
        if isinstance(split, TableSplit):
            raise located([(("kind",), f"{_OF_TABLE}: use random or time")])
        if isinstance(split, PerUserSplit | LastNSplit):
            raise located([(("kind",), "goes by users, which a `table` has not: use random or time")])
        if isinstance(split, TimeSplit) and not info.data["table"].time:
            raise located([(("kind",), "needs the time: table: {table: …, time: COLUMN}")])
        return split

    @pydantic.field_validator("train", mode="before")
    @classmethod
    def _default_trainer(cls, train: Any, info: pydantic.ValidationInfo) -> Any:
        if _of(info) != "table":
            return PyGTrainer() if train is None else train
        if train is None:
            raise ValueError("required for a `table`, for example {kind: xgboost, label: COLUMN}")
        if isinstance(train, Mapping) and "kind" not in train:
            raise located([(("kind",), "required for a `table`, for example xgboost")])
        return train

    @pydantic.field_validator("train")
    @classmethod
    def _trainer_fits(cls, train: Trainer, info: pydantic.ValidationInfo) -> Trainer:
        of, on_tables = _of(info), isinstance(train, TableTrainer)
        if of is None or isinstance(train, Custom):  # a trainer of the user's own that is not imported yet
            return train
        name = type(train).__name__
        if on_tables != (of == "table"):
            wants, use = ("a `table`", "pyg") if on_tables else ("`events`", "xgboost, torch or tensorflow")
            raise located([(("kind",), f"{name} learns from {wants}; from {_WHAT[of]} learns {use}")])
        if isinstance(train, TableTrainer) and train.label in info.data["table"].left_out:
            raise located([(("label",), f"{train.label!r} is the id or the time of the `table`")])
        return train

    @pydantic.field_validator("tune")
    @classmethod
    def _tuning_fits(cls, tune: Tune | None, info: pydantic.ValidationInfo) -> Tune | None:
        if tune is None or _of(info) is None:
            return tune
        if _of(info) == "events":
            raise ValueError(_OF_EVENTS)
        trainer = info.data.get("train")
        if isinstance(trainer, Trainer):
            try:
                check_space(trainer, tune)
            except ConfigError as error:
                raise located([(tuple(p.path.split(".")[1:]), p.message) for p in error.problems]) from None
        return tune

    @pydantic.field_validator("evaluate")
    @classmethod
    def _evaluation_fits(cls, evaluate: Evaluate, info: pydantic.ValidationInfo) -> Evaluate:
        _refuse(evaluate, _of(info), events=["k", "baselines", "map"], table=["metrics", "evaluators"])
        return evaluate

    @pydantic.field_validator("predict")
    @classmethod
    def _prediction_fits(cls, predict: Predict | None, info: pydantic.ValidationInfo) -> Predict | None:
        if predict is None:
            return predict
        _refuse(predict, _of(info), events=["k", "users"], table=["rows"])
        _refuse(predict.output, _of(info), "output", events=["embeddings"], table=[])
        if _of(info) == "table" and "table" not in predict.output.model_fields_set:
            output = predict.output.model_copy(update={"table": "predictions"})
            return predict.model_copy(update={"output": output})
        return predict

    @pydantic.field_validator("predict")
    @classmethod
    def _output_has_the_partitions_column(
        cls, predict: Predict | None, info: pydantic.ValidationInfo
    ) -> Predict | None:
        events = info.data.get("events")  # the columns of a `table` are known when it is looked at
        if predict is None or events is None or (column := predict.output.partition_by) is None:
            return predict
        columns = [events.user, "rank", events.item]
        if column not in columns:
            what = "is a number with fractions" if column == "score" else "is no column of recommendations"
            has = f"partition them by {', '.join(columns[:-1])} or {columns[-1]}"
            raise located([(("output", "partition_by"), f"{column!r} {what}: {has}{near_match(column, columns)}")])  # fmt: skip
        return predict

    @pydantic.field_validator("predict")
    @classmethod
    def _output_is_its_own(cls, predict: Predict | None, info: pydantic.ValidationInfo) -> Predict | None:
        problems: list[tuple[tuple[str, ...], str]] = []
        if predict is None:
            return predict
        output, source = predict.output, info.data.get("warehouse")
        if source is not None and _place(output.warehouse) == _place(source):
            problems.append(
                (("output", "warehouse"), "is the input warehouse, which is only read: name another")
            )
        tables = tables_written(predict)
        if twice := next((table for table in tables if tables.count(table) > 1), None):
            problems.append((("output",), f"the table {twice} would be written twice"))
        if problems:
            raise located(problems)
        return predict

    @property
    def folder(self) -> Path | str:
        """The run's folder: a path, or a URL."""
        return below(self.runs, self.name)


Config = str | os.PathLike[str] | Mapping[str, Any] | Pipeline


def load_config(config: Config, overrides: Sequence[str] = (), *, check_only: bool = False) -> Pipeline:
    """Read and check a config.

    Args:
        config: A YAML file, a mapping with the same keys, or a `Pipeline`.
        overrides: `dotted.path=value` each.
        check_only: Look import paths up without importing them; the result is not fit to run.

    Raises:
        ConfigError: With every mistake, each with its place and a near match.
    """
    if isinstance(config, Pipeline):
        if not overrides:
            return config
        return check(Pipeline, read_document(document_of(config), overrides), check_only=check_only)
    document: Document = read_document(config, overrides)
    return check(Pipeline, document, check_only=check_only)


def pipeline_of(data: dict[str, Any]) -> Pipeline:
    """A pipeline of what `document_of` gives, maybe changed: what looks like a variable there is text.

    Raises:
        ConfigError: With every mistake.
    """
    return check(Pipeline, Document(data=data))


def run(
    config: Config,
    *,
    overrides: Sequence[str] = (),
    fresh: bool = False,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> RunResult:
    """Run a pipeline, or go on with one that was interrupted or edited.

    Args:
        config: A YAML file, a mapping with the same keys, or a `Pipeline`.
        overrides: `dotted.path=value` each, as with `sp-ray run --set`.
        fresh: Start over; what earlier starts of this run left is removed.
        reporter: Told of the steps; prints them without.
        verbose: Let libraries write to the terminal; otherwise what they say goes to `run.log`.

    With `cluster: {name: …}` it runs on a cluster on Kubernetes, found or created, and is followed from here; Ctrl-C then
    asks whether to leave it to itself or to stop it.

    Raises:
        ConfigError: The config is wrong. Nothing was done.
        SpRayError: A step failed. What was there before is untouched, and the next start goes on from that step.
    """
    pipeline = load_config(config, overrides)
    if reporter is None:
        from sp_ray_ml._console import Console
        from sp_ray_ml._shown.result import show_result

        with Console() as console:
            result = run(pipeline, fresh=fresh, reporter=console, verbose=verbose)
        show_result(result, examples=False)
        return result
    if not isinstance(pipeline.cluster, str):
        from sp_ray_ml._on_cluster.run import run_on_cluster

        found = run_on_cluster(
            pipeline, fresh=fresh, verbose=verbose, reporter=reporter, restart=_again(config, overrides)
        )
        assert isinstance(found, RunResult)
        return found
    from sp_ray_ml.cluster._connect import ray_of

    began = time.perf_counter()
    with ray_of(pipeline.cluster):
        return _run(pipeline, began, fresh=fresh, reporter=reporter, verbose=verbose)


def predict(
    config: Config,
    *,
    overrides: Sequence[str] = (),
    predictor: Any = None,
    all_events: bool = False,
    reporter: Reporter | None = None,
    verbose: bool = False,
) -> PredictResult:
    """Predict with what a pipeline has trained, on its warehouse as it is now; nothing is trained.

    Recommendations take in the events since the training, and users and items that are new: the graph of all events
    until now is built, and the trained weights go over it once. Of a `table`, its rows (or those of `predict.rows`)
    are predicted. With `cluster: {name: …}` it is done on that cluster, as a run is.

    Args:
        config: As for `run`.
        overrides: `dotted.path=value` each.
        predictor: A sealed predictor's path, a run's folder or an MLflow URI (`models:/NAME@champion`); for a `table`
            also a `Predictor` class of your own, its import path `module:Class`, or either with arguments as
            `Custom(target=…, arguments={…})`. Without, that of the pipeline's own run.
        all_events: Read the whole table of events. Without, events that were written late, with a time before the
            last ones of the training, are not seen.
        reporter: Told of the steps; prints them without.
        verbose: Let libraries write to the terminal; otherwise what they say goes to `predict/run.log`.

    Raises:
        ConfigError: The config is wrong or does not fit the predictor, or the import path leads to none. Nothing was
            done.
        CheckpointError: There is no predictor, or it is of another kind.
        LockedError: A run of this name is under way, or another prediction of it.
        SpRayError: A step failed. The output is as it was, and the next start goes on from that step.
    """
    from sp_ray_ml import _predict_job
    from sp_ray_ml._predict_sealed import open_predictor
    from sp_ray_ml._predict_tracking import end_night, open_night
    from sp_ray_ml.cluster._connect import ray_of

    pipeline = load_config(config, overrides)
    if reporter is None:
        from sp_ray_ml._console import Console
        from sp_ray_ml._shown.predicted import show_predicted

        with Console() as console:
            result = predict(
                pipeline, predictor=predictor, all_events=all_events, reporter=console, verbose=verbose
            )
        show_predicted(result)
        return result
    again = _again(config, overrides)
    if not isinstance(pipeline.cluster, str):
        from sp_ray_ml._on_cluster.run import run_on_cluster

        if not isinstance(predictor, str | None):
            raise ConfigError(
                "what predicts on a cluster is named", where="predictor",
                hint="Give its URL, models:/NAME@champion, or the import path of a class in this folder: MODULE:CLASS",
            )  # fmt: skip
        asked = {"predictor": predictor, "all_events": all_events}
        found = run_on_cluster(
            pipeline, fresh=False, verbose=verbose, reporter=reporter, restart=_again(config, overrides, "predict"),
            predict=asked, training=again,
        )  # fmt: skip
        assert isinstance(found, _predict_job.PredictResult)
        return found
    # Meanwhile no run of this name may begin: it would make anew, or remove, what is read and written here.
    run_lock = hold_run(pipeline.folder, reporter)
    with ray_of(pipeline.cluster), contextlib.ExitStack() as held:
        if there := not isinstance(pipeline.folder, Path) or pipeline.folder.is_dir():
            held.enter_context(run_lock)
        sealed = open_predictor(pipeline, predictor, again)
        preflight_output(pipeline)
        folder = held.enter_context(RunFolder(below(pipeline.folder, _predict_job.PREDICT), reporter))
        if not there:
            held.enter_context(run_lock)
        held.enter_context(_quiet(folder.path / "run.log", verbose))
        with _tracked(pipeline, folder, open_night(pipeline, folder, sealed)) as tracked:
            result = _predict_job.run(pipeline, folder, sealed, all_events=all_events)
            tracked.log_metrics(result.figures)
        end_night(folder)
        return dataclasses.replace(result, mlflow_run_id=tracked.mlflow_run_id, url=folder.url)


def _run(pipeline: Pipeline, began: float, *, fresh: bool, reporter: Reporter, verbose: bool) -> RunResult:
    from sp_ray_ml.tracking import Run

    _preflight(pipeline)
    with RunFolder(pipeline.folder, reporter, fresh=fresh) as folder:
        write_text(folder.path / "config.yaml", to_yaml(pipeline))
        opened = Run.open(
            folder.path, name=pipeline.name, settings=pipeline.tracking, runs_folder=pipeline.runs,
            place=folder.url,
        )  # fmt: skip
        with _quiet(folder.path / "run.log", verbose), _tracked(pipeline, folder, opened) as tracked:
            tracked.log_artifact(folder.path / "config.yaml")
            result = _job_of(pipeline).run(pipeline, folder, tracked)
            tracked.log_metrics({"time/total": time.perf_counter() - began})
        folder.save(metrics=dict(result.metrics), mlflow_run_id=tracked.mlflow_run_id)
    return dataclasses.replace(result, mlflow_run_id=tracked.mlflow_run_id)


def _again(config: Config, overrides: Sequence[str], verb: Literal["run", "predict"] = "run") -> str:
    """The command line that goes on with a run, or a prediction."""
    named = os.fspath(config) if isinstance(config, str | os.PathLike) else "CONFIG"
    return shlex.join(["sp-ray", verb, named, *(part for each in overrides for part in ("--set", each))])


def plan(pipeline: Pipeline) -> list[PlannedStep]:
    """What each step will read and write, after a look at the input's tables and columns.

    Raises:
        TableNotFoundError: A table is not there.
        ColumnNotFoundError: A column is not there.
        WarehouseError: The warehouse cannot be opened.
    """
    return _job_of(pipeline).plan(pipeline)


def _preflight(p: Pipeline) -> None:
    """What can be known to fail before any work is done."""
    _job_of(p).preflight(p)
    plan(p)
    preflight_output(p)


def preflight_output(p: Pipeline) -> None:
    """Make sure that the warehouse of the predictions can be opened, where there are any."""
    if p.predict is not None:
        from sp_ray_ml.data.warehouse import open_warehouse

        open_warehouse(p.predict.output.warehouse)


class _Job(Protocol):
    """A straight list of steps: the modules `_event_job` and `_table_job`."""

    def run(self, p: Pipeline, folder: RunFolder, tracked: Run) -> RunResult: ...

    def plan(self, p: Pipeline) -> list[PlannedStep]: ...

    def preflight(self, p: Pipeline) -> None: ...


def _job_of(p: Pipeline) -> _Job:
    from sp_ray_ml import _event_job, _table_job

    return _event_job if p.table is None else _table_job


def _place(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if scheme in {"", "file", "parquet", "duckdb"}:
        local = rest.removeprefix("/") if scheme == "duckdb" else rest
        return os.path.realpath(Path(local).expanduser())
    return url.rstrip("/")


@contextlib.contextmanager
def _tracked(p: Pipeline, folder: RunFolder, tracked: Run) -> Iterator[Run]:
    """A run in MLflow while the block lasts, finished as it ends."""
    status = "FAILED"
    try:
        tracked.log_params(dump(p))
        yield tracked
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        try:
            # Also of a run that is stopped: the next start keeps these steps and measures them no more.
            tracked.log_metrics({f"time/{step.name}": step.seconds for step in folder.steps if not step.kept})
        finally:
            if p.tracking.enabled:
                folder.reporter.progress(0, 0, "MLflow takes the rest")
            outcome = tracked.finish(status, wait_s=None if status == "FINISHED" else 3.0)
            if outcome.pending and p.tracking.enabled:
                folder.reporter.note(str(outcome))


@contextlib.contextmanager
def _quiet(file: Path, verbose: bool) -> Iterator[None]:
    """Send what libraries log and warn of to a file, unless it is wanted on the terminal."""
    import logging

    if verbose:
        yield
        return
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO) if level else logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    except SpRayError:
        raise
    except Exception:
        logging.getLogger("sp_ray_ml").exception("the run failed")
        raise
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
