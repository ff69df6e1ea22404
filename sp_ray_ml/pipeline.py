"""`Pipeline` and `run`: from a warehouse of events to recommendations written back, as a straight list of steps.

    read → split → graph → features → train → evaluate → predict → write

Each step's output is kept in the run's folder with a fingerprint of its inputs, settings and code. A run that is
started again keeps what has not changed and goes on from there, in the same MLflow run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from sp_ray_ml._runs import Reporter, RunFolder, Step, StepContext
from sp_ray_ml.config import (
    Custom,
    Document,
    Settings,
    check,
    document_of,
    dump,
    located,
    read_document,
    redact,
    to_yaml,
)
from sp_ray_ml.data.settings import Events, Nodes
from sp_ray_ml.data.splits import PerUserSplit, SplitField
from sp_ray_ml.errors import ConfigError, SpRayError
from sp_ray_ml.graph.settings import GraphSettings
from sp_ray_ml.inference.settings import Evaluate, Predict
from sp_ray_ml.storage import read_json, write_text
from sp_ray_ml.tracking.settings import Tracking
from sp_ray_ml.train.pyg import PyGTrainer
from sp_ray_ml.train.trainer import Trainer, TrainerField

if TYPE_CHECKING:
    import ray.train

    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.tracking.run import Run
    from sp_ray_ml.train.recommender import Recommender

__all__ = ["Pipeline", "PlannedStep", "RunResult", "load_config", "plan", "run"]


_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"


class Pipeline(Settings):
    """A whole job: what is read, learned, compared and written. The YAML file has the same keys."""

    name: str = pydantic.Field(max_length=100, json_schema_extra={"pattern": f"^{_NAME}$"})
    """Name of the run and of its folder."""
    seed: int = pydantic.Field(default=0, ge=0)
    """The same seed on the same machine gives the same numbers."""
    warehouse: str = pydantic.Field(min_length=1)
    """Where events and nodes are: a folder of Parquet files or a DuckDB file. It is only read."""
    events: Events
    """The events."""
    nodes: Nodes = Nodes()
    """Tables about users and items."""
    split: SplitField = PerUserSplit()
    """What is held out to test on."""
    graph: GraphSettings = GraphSettings()
    """How events become a graph."""
    train: TrainerField = PyGTrainer()
    """What is trained, and how."""
    evaluate: Evaluate = Evaluate()
    """Metrics and baselines."""
    predict: Predict | None = None
    """Recommendations to write; none are written without."""
    tracking: Tracking = Tracking()
    """Where the run is recorded."""
    runs: str = "runs"
    """Folder of the runs' folders."""
    cluster: Literal["auto", "local"] = "auto"
    """Where Ray is, for a step that uses it: `auto` attaches to the cluster that this runs in (on its head, say, or where
    `RAY_ADDRESS` is set) and elsewhere starts it on this machine; `local` always does the latter."""

    # Validators of one field: those of the whole model would be silent as long as any other field is wrong.
    @pydantic.field_validator("name")
    @classmethod
    def _can_name_a_folder(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError(
                f"{name!r} cannot name a folder: use letters, digits, dots, dashes and underscores, a letter or digit first"
            )
        return name

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
        tables = _tables_written(predict)
        if twice := next((table for table in tables if tables.count(table) > 1), None):
            problems.append((("output",), f"the table {twice} would be written twice"))
        if problems:
            raise located(problems)
        return predict

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run gives.

    Attributes:
        metrics: Of the trained model on the test events: `recall@20`, `ndcg@20/cold_items`, ….
        baselines: The same for each baseline.
        outputs: Tables that were written, and the warehouse of each.
        path: The run's folder.
        mlflow_run_id: The run in MLflow; None where tracking is off or the server has not answered.
        steps: What each step left.
    """

    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, str]
    path: Path
    mlflow_run_id: str | None
    steps: Sequence[Step]

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name} {value:.4f}"
            for name, value in self.metrics.items()
            if name.startswith(("recall@", "ndcg@")) and "/" not in name
        )
        return f"RunResult({shown}, path={str(self.path)!r})"

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the sealed predictor, which `Predictor.load` opens."""
        return self.path / "steps" / "train" / "predictor"

    @property
    def checkpoint(self) -> ray.train.Checkpoint:
        """The sealed predictor as Ray's own checkpoint."""
        import ray.train

        return ray.train.Checkpoint.from_directory(str(self.checkpoint_path))


@dataclass(frozen=True)
class PlannedStep:
    """What a step will do: `sp-ray run --dry-run`."""

    name: str
    reads: Sequence[str]
    writes: Sequence[str]


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

    Raises:
        ConfigError: The config is wrong. Nothing was done.
        SpRayError: A step failed. What was there before is untouched, and the next start goes on from that step.
    """
    pipeline = load_config(config, overrides)
    if reporter is None:
        from sp_ray_ml._console import Console
        from sp_ray_ml._results import show_result

        with Console() as console:
            result = run(pipeline, fresh=fresh, reporter=console, verbose=verbose)
        show_result(result, examples=False)
        return result
    began = time.perf_counter()
    with _ray_of(pipeline.cluster):
        return _run(pipeline, began, fresh=fresh, reporter=reporter, verbose=verbose)


def _run(pipeline: Pipeline, began: float, *, fresh: bool, reporter: Reporter, verbose: bool) -> RunResult:
    _preflight(pipeline)
    with RunFolder(pipeline.folder, reporter, fresh=fresh) as folder:
        write_text(folder.path / "config.yaml", to_yaml(pipeline))
        with _quiet(folder.path / "run.log", verbose), _tracked(pipeline, folder) as tracked:
            result = _run_steps(pipeline, folder, tracked)
            tracked.log_metrics({"time/total": time.perf_counter() - began})
        folder.save(metrics=dict(result.metrics), mlflow_run_id=tracked.mlflow_run_id)
    return dataclasses.replace(result, mlflow_run_id=tracked.mlflow_run_id)


@contextlib.contextmanager
def _ray_of(cluster: Literal["auto", "local"]) -> Iterator[None]:
    """Have Ray's own variable name the cluster that is meant, while the block lasts."""
    from sp_ray_ml.cluster._connect import inside_cluster_address

    before = os.environ.get("RAY_ADDRESS")
    address = inside_cluster_address() if cluster == "auto" else None
    try:
        if address:
            os.environ["RAY_ADDRESS"] = address
        else:
            os.environ.pop("RAY_ADDRESS", None)
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before


def _run_steps(pipeline: Pipeline, folder: RunFolder, tracked: Run) -> RunResult:
    """The job, from top to bottom."""
    from sp_ray_ml import _steps
    from sp_ray_ml.data.warehouse import open_warehouse

    p, trainer = pipeline, _trainer(pipeline)
    warehouse = open_warehouse(p.warehouse)
    tables = _input_fingerprints(warehouse, p)
    tracked.log_tags({f"data.{table}": mark for table, mark in tables.items()})

    read = folder.step(
        "read",
        lambda step: _steps.read(step, warehouse, p.events, p.nodes),
        inputs=[p.events, p.nodes, tables],
        code=["data", "_steps.py"],
    )
    catalog = _steps.Catalog.load(read.folder)
    split = folder.step(
        "split",
        lambda step: _steps.split(step, catalog, p.split, p.seed),
        inputs=[p.split, p.seed],
        after=[read],
    )
    label = _steps.load_labels(split.folder)
    graph = folder.step(
        "graph",
        lambda step: _steps.build(step, catalog, label, p.graph),
        inputs=[p.graph],
        after=[split],
        code=["graph/construct.py", "graph/graph.py"],
    )
    topology = _steps.Topology.load(graph.folder)
    _steps.check_k(_largest_k(p), topology.full.num_nodes["item"])
    features = folder.step(
        "features",
        lambda step: _steps.encode(step, catalog, topology, label, p.nodes),
        inputs=[p.nodes],
        after=[graph],
    )
    train = folder.step(
        "train",
        lambda step: _steps.train(
            step,
            trainer,
            catalog,
            topology,
            features=features.folder,
            events=p.events,
            nodes=p.nodes,
            seed=p.seed,
            on_epoch=_on_epoch(step, tracked),
            about=_about(p, folder),
        ),
        inputs=[trainer, p.seed],
        after=[features],
        code=["train", "graph", "metrics"],
    )
    recommender = _steps.load_recommender(train.folder)
    evaluated = folder.step(
        "evaluate",
        lambda step: _steps.measure(step, recommender, topology, p.evaluate),
        inputs=[p.evaluate],
        after=[train],
        code=["inference", "metrics"],
    )
    table = _steps.load_metrics(evaluated.folder)
    _track_results(tracked, pipeline, table, train, recommender)
    outputs: dict[str, str] = {}
    if p.predict is not None:
        predict = p.predict
        predicted = folder.step(
            "predict",
            lambda step: _steps.predict(step, recommender, warehouse, predict),
            inputs=[predict.k, predict.users, tables.get(predict.users or "")],
            after=[train],
            code=["inference", "metrics"],
        )
        # The warehouse knows what was committed: what is there is not written again, what is gone is.
        written = folder.step(
            "write",
            lambda step: _steps.write(
                step, predicted.folder, recommender, predict, f"{folder.info['id']}:{predicted.fingerprint}"
            ),
            inputs=[predict],
            after=[predicted],
            keep=False,
        )
        outputs = dict.fromkeys(written.summary["tables"], redact(predict.output.warehouse))
    return RunResult(
        table["model"],
        {k: v for k, v in table.items() if k != "model"},
        outputs,
        folder.path,
        None,
        folder.steps,
    )


def plan(pipeline: Pipeline) -> list[PlannedStep]:
    """What each step will read and write, after a look at the input's tables and columns.

    Raises:
        TableNotFoundError: A table is not there.
        ColumnNotFoundError: A column is not there.
        WarehouseError: The warehouse cannot be opened.
    """
    from sp_ray_ml.data.warehouse import open_warehouse

    p = pipeline
    warehouse = open_warehouse(p.warehouse)
    reads = []
    for query, columns in _columns_read(p).items():
        warehouse.source(query, columns=columns)
        reads.append(f"{query} ({', '.join(columns)})")
    steps = p.folder / "steps"
    planned = [
        PlannedStep("read", [f"{redact(p.warehouse)}: {entry}" for entry in reads], [f"{steps}/read"]),
        PlannedStep("split", ["read"], [f"{steps}/split"]),
        PlannedStep("graph", ["read", "split"], [f"{steps}/graph"]),
        PlannedStep("features", ["read", "split"], [f"{steps}/features"]),
        PlannedStep("train", ["graph", "features"], [f"{steps}/train/predictor"]),
        PlannedStep("evaluate", ["graph", "train"], [f"{steps}/evaluate/metrics.json"]),
    ]
    if p.predict is not None:
        output = p.predict.output
        planned += [
            PlannedStep("predict", ["train"], [f"{steps}/predict"]),
            PlannedStep(
                "write",
                ["predict"],
                [f"{redact(output.warehouse)}: {t} ({output.mode})" for t in _tables_written(p.predict)],
            ),
        ]
    return planned


def _tables_written(predict: Predict) -> list[str]:
    output = predict.output
    return [table for table in (output.table, output.embeddings.user, output.embeddings.item) if table]


def _columns_read(p: Pipeline) -> dict[str, list[str]]:
    events = p.events
    found = {events.table: [c for c in (events.user, events.item, events.time, events.rating) if c]}
    for node in (p.nodes.user, p.nodes.item):
        if node is not None:
            columns = [node.id, node.title, *(c for f in node.features for c in f.columns)]
            found[node.table] = list(dict.fromkeys([*found.get(node.table, []), *(c for c in columns if c)]))
    if p.predict is not None and p.predict.users:
        found[p.predict.users] = [*found.get(p.predict.users, []), events.user]
    return found


def _input_fingerprints(warehouse: Warehouse, p: Pipeline) -> dict[str, str]:
    from sp_ray_ml.data.warehouse import is_sql

    marks = {}
    for query in _columns_read(p):
        tables = warehouse.tables() if is_sql(query) else [query]
        marks[query] = "-".join(warehouse.fingerprint(table) for table in tables)
    return marks


def _preflight(p: Pipeline) -> None:
    """What can be known to fail before any work is done."""
    from sp_ray_ml.optional import check_installed
    from sp_ray_ml.train.context import check_resources

    trainer = _trainer(p)
    for module in ("torch", "torch_geometric"):
        check_installed(module, type(trainer).__name__)
    check_resources(trainer.scaling)
    if isinstance(trainer.model, Custom):
        _check_model(trainer.model)
    plan(p)
    if p.predict is not None:
        from sp_ray_ml.data.warehouse import open_warehouse

        open_warehouse(p.predict.output.warehouse)


def _trainer(p: Pipeline) -> PyGTrainer:
    trainer: Trainer = p.train
    if not isinstance(trainer, PyGTrainer):
        raise ConfigError(f"{type(trainer).__name__} cannot train a recommender", where="train.kind")
    return trainer


def _check_model(model: Custom) -> None:
    """Refuse a class that is no model; what a function makes is known only when it has been called."""
    target = model.load()
    if not isinstance(target, type):
        return
    import torch

    if not issubclass(target, torch.nn.Module):
        raise ConfigError(
            f"{model.path} is not a model (a subclass of torch.nn.Module)", where="train.model.kind"
        )


def _largest_k(p: Pipeline) -> dict[str, int]:
    wanted = {"evaluate.k": max(p.evaluate.k)}
    return {**wanted, "predict.k": p.predict.k} if p.predict is not None else wanted


def _place(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if scheme in {"", "file", "parquet", "duckdb"}:
        local = rest.removeprefix("/") if scheme == "duckdb" else rest
        return os.path.realpath(Path(local).expanduser())
    return url.rstrip("/")


def _about(p: Pipeline, folder: RunFolder) -> dict[str, Any]:
    from sp_ray_ml.tracking import environment_tags

    return {
        "run": {"name": p.name, "id": folder.info["id"]},
        "environment": environment_tags(),
        "config": dump(p),
    }


def _on_epoch(step: StepContext, tracked: Run) -> Any:
    count = 0

    def on_epoch(metrics: Mapping[str, float]) -> None:
        nonlocal count
        count += 1
        refit = metrics["phase"] == 1
        values = {
            f"refit/{k}" if refit else k: v
            for k, v in metrics.items()
            if k not in {"phase", "epochs", "epoch"}
        }
        tracked.log_metrics(
            {f"train/{name}": value for name, value in values.items()}, step=int(metrics["epoch"])
        )
        shown = next(
            (f", {name} {value:.4f}" for name, value in metrics.items() if name.startswith("ndcg@")), ""
        )
        text = f"{'again on all of the history, ' if refit else ''}epoch {metrics['epoch']}, loss {metrics['loss']:.4f}{shown}"
        step.progress(metrics["epoch"], metrics["epochs"], text)

    return on_epoch


@contextlib.contextmanager
def _tracked(p: Pipeline, folder: RunFolder) -> Iterator[Run]:
    from sp_ray_ml.tracking import Run

    tracked = Run.open(folder.path, name=p.name, settings=p.tracking, runs_folder=p.runs)
    status = "FAILED"
    try:
        tracked.log_params(dump(p))
        tracked.log_artifact(folder.path / "config.yaml")
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


def _track_results(
    tracked: Run, p: Pipeline, table: Mapping[str, Mapping[str, Any]], train: Step, recommender: Recommender
) -> None:

    tracked.log_metrics(dict(table["model"]))
    for name, row in table.items():
        if name != "model" and "skipped" not in row:
            tracked.log_metrics(
                {f"{name}/{metric}": value for metric, value in row.items() if "/" not in metric}
            )
    shown = {name: {k: v for k, v in row.items() if "@" in k and "/" not in k} for name, row in table.items()}
    tracked.log_plot("metrics", shown, "plots/metrics.png", f"{p.name}: test events")
    history = [
        {k: v for k, v in h.items() if k != "phase"}
        for h in read_json(train.folder / "history.json")
        if h["phase"] == 0
    ]
    if history:
        tracked.log_plot("history", history, "plots/history.png", f"{p.name}: training")
    if p.tracking.model:
        tracked.log_model(train.folder / "predictor", signature=recommender.mlflow_signature())


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
