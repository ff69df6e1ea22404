"""From events to recommendations written back, as a straight list of steps.

read → split → graph → features → train → evaluate → predict → write
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sp_ray_ml._job import (
    JobStep,
    PlannedStep,
    RunResult,
    Work,
    about,
    events_of,
    planned_write,
    run_steps,
    table_fingerprints,
)
from sp_ray_ml._remote import below
from sp_ray_ml._runs import RunFolder, StepContext
from sp_ray_ml.config import Custom, near_match, redact
from sp_ray_ml.data.splits import TableSplit
from sp_ray_ml.errors import ColumnNotFoundError, ConfigError
from sp_ray_ml.storage import read_json
from sp_ray_ml.train.pyg import PyGTrainer
from sp_ray_ml.train.tasks import Recommendation
from sp_ray_ml.train.two_tower import TwoTowerTrainer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sp_ray_ml._event_steps.catalog import Catalog
    from sp_ray_ml._event_steps.topology import Topology
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking.run import Run
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.trainer import Trainer

__all__ = ["EventWork", "plan", "preflight", "run", "steps"]

_GRAPH_CODE = ("construct", "graph", "_rows", "_row_kernels", "_co_occurrence", "_pair_kernels", "_files")


@dataclass
class EventWork(Work):
    """What the steps share. What one left is opened when another asks for it, and once."""

    @cached_property
    def warehouse(self) -> Warehouse:
        """Where the tables are."""
        from sp_ray_ml.data.warehouse import open_warehouse

        return open_warehouse(self.pipeline.warehouse)

    @cached_property
    def catalog(self) -> Catalog:
        """Of `read`."""
        from sp_ray_ml._event_steps.catalog import Catalog

        return Catalog.load(self.output("read"))

    @cached_property
    def label(self) -> NDArray[np.int8]:
        """Of `split`."""
        from sp_ray_ml._step_output import load_labels

        return load_labels(self.output("split"))

    @cached_property
    def topology(self) -> Topology:
        """Of `graph`."""
        from sp_ray_ml._event_steps.topology import Topology

        return Topology.load(self.output("graph"))

    @cached_property
    def recommender(self) -> Recommender:
        """Of `train`."""
        from sp_ray_ml._event_steps.training import load_recommender

        return load_recommender(self.output("train"))


def run(p: Pipeline, folder: RunFolder, tracked: Run) -> RunResult:
    """The job, from top to bottom."""
    listed = steps(p)
    return run_steps(listed, EventWork(p, folder, tracked, table_fingerprints(p, listed)))


def steps(p: Pipeline) -> list[JobStep[EventWork]]:
    """The steps in their order."""
    from sp_ray_ml._event_steps import encoding, measuring, predicting, reading, splitting, topology, training

    events, trainer = events_of(p), _trainer(p)
    listed: list[JobStep[EventWork]] = [
        JobStep(
            "read",
            lambda step, work: reading.read(step, work.warehouse, events, p.nodes, _test_table(p)),
            tables=list(_columns_read(p)),
            inputs=[events, p.nodes],
            code=["data", *_code_of("catalog", "reading")],
            then=lambda work: work.catalog,
        ),
        JobStep(
            "split",
            lambda step, work: splitting.split(step, work.catalog, p.split, p.seed),
            reads=["read"],
            inputs=[p.split, p.seed],
            code=_code_of("splitting"),
            then=lambda work: work.label,
        ),
        JobStep(
            "graph",
            lambda step, work: topology.build(step, work.catalog, work.label, p.graph),
            reads=["read", "split"],
            inputs=[p.graph.model_copy(update={"shards": None})],  # of the training, not of the graph
            code=[*(f"graph/{name}.py" for name in _GRAPH_CODE), *_code_of("topology")],
            then=lambda work: measuring.check_k(_largest_k(p), work.topology.full.num_nodes["item"]),
        ),
        JobStep(
            "features",
            lambda step, work: encoding.encode(step, work.catalog, work.topology, work.label, p.nodes),
            reads=["read", "split", "graph"],
            inputs=[p.nodes],
            code=_code_of("encoding"),
        ),
        JobStep(
            "train",
            lambda step, work: training.train(
                step,
                trainer,
                work.catalog,
                work.topology,
                work.label,
                features=work.output("features"),
                graph=p.graph,
                events=events,
                nodes=p.nodes,
                seed=p.seed,
                options=_options(step, work.tracked, p),
                about=about(p, work.folder),
            ),
            reads=["read", "split", "graph", "features"],
            inputs=[trainer, p.seed, p.graph.shards],
            code=["train", "graph", "metrics", *_code_of("training")],
            then=lambda work: work.recommender,
        ),
        JobStep(
            "evaluate",
            lambda step, work: measuring.measure(
                step, work.recommender, work.catalog, work.topology, p.evaluate
            ),
            reads=["read", "graph", "train"],
            inputs=[p.evaluate],
            code=["inference", "metrics", *_code_of("measuring")],
            then=_track_results,
        ),
    ]
    if (predict := p.predict) is not None:
        listed += [
            JobStep(
                "predict",
                lambda step, work: predicting.predict(step, work.recommender, work.warehouse, predict),
                reads=["train"],
                tables=[predict.users] if predict.users else [],
                inputs=[predict.k, predict.users],
                code=["inference", "metrics", *_code_of("predicting")],
            ),
            JobStep(
                "write",
                lambda step, work: predicting.write(
                    step, work.output("predict"), work.recommender, predict, work.commit
                ),
                reads=["train", "predict"],
                inputs=[predict],
                keep=False,
            ),
        ]
    return listed


def _code_of(*names: str) -> list[str]:
    return [f"_event_steps/{name}.py" for name in names]


def plan(p: Pipeline) -> list[PlannedStep]:
    """What each step will read and write, after a look at the input's tables and columns.

    Raises:
        TableNotFoundError: A table is not there.
        ColumnNotFoundError: A column is not there.
        WarehouseError: The warehouse cannot be opened.
    """
    from sp_ray_ml.data.warehouse import open_warehouse

    warehouse = open_warehouse(p.warehouse)
    reads = []
    for query, columns in _columns_read(p).items():
        warehouse.source(query, columns=columns)
        reads.append(f"{query} ({', '.join(columns)})")
    _check_segments(p)
    steps = below(p.folder, "steps")
    planned = [
        PlannedStep("read", [f"{redact(p.warehouse)}: {entry}" for entry in reads], [f"{steps}/read"]),
        PlannedStep("split", ["read"], [f"{steps}/split"]),
        PlannedStep("graph", ["read", "split"], [f"{steps}/graph"]),
        PlannedStep("features", ["read", "split"], [f"{steps}/features"]),
        PlannedStep("train", ["graph", "features"], [f"{steps}/train/predictor"]),
        PlannedStep("evaluate", ["graph", "train"], [f"{steps}/evaluate/metrics.json"]),
    ]
    if p.predict is not None:
        planned += [
            PlannedStep("predict", ["train"], [f"{steps}/predict"]),
            planned_write(p.predict),
        ]
    return planned


def _check_segments(p: Pipeline) -> None:
    """Find a column of `evaluate.by` that is not read now, and not after the training."""
    user = p.nodes.user
    columns = (
        []
        if user is None
        else [user.id, user.title, *(c for feature in user.features for c in feature.columns)]
    )
    there = [column for column in dict.fromkeys(columns) if column]
    for column in p.evaluate.by:
        if column not in there:
            raise ColumnNotFoundError(
                f"{column!r} is none of the columns of users that are read{near_match(column, there)}",
                where="evaluate.by",
                hint="Name columns of nodes.user that its title or features read"
                + (f": {', '.join(there)}" if there else ""),
            )


def _columns_read(p: Pipeline) -> dict[str, list[str]]:
    events = events_of(p)
    found = {events.table: [c for c in (events.user, events.item, events.time, events.rating) if c]}
    if test := _test_table(p):
        found[test] = list(found[events.table])
    for node in (p.nodes.user, p.nodes.item):
        if node is not None:
            columns = [node.id, node.title, *(c for f in node.features for c in f.columns)]
            found[node.table] = list(dict.fromkeys([*found.get(node.table, []), *(c for c in columns if c)]))
    if p.predict is not None and p.predict.users:
        found[p.predict.users] = [*found.get(p.predict.users, []), events.user]
    return found


def _test_table(p: Pipeline) -> str | None:
    return p.split.test if isinstance(p.split, TableSplit) else None


def preflight(p: Pipeline) -> None:
    """What can be known to fail before any work is done."""
    from sp_ray_ml.optional import check_installed
    from sp_ray_ml.train._resources import check_resources

    trainer = _trainer(p)
    for module in ("torch", "torch_geometric"):
        check_installed(module, type(trainer).__name__)
    check_resources(trainer.scaling)
    if isinstance(trainer, TwoTowerTrainer):
        from sp_ray_ml.train._tower_fit import check_features

        nodes = {"user": p.nodes.user, "item": p.nodes.item}
        check_features({name: node for name, node in nodes.items() if node is not None and node.features})
    if not isinstance(trainer, TwoTowerTrainer) and not isinstance(trainer.task, Recommendation):
        raise ConfigError(
            "events are learned to be recommended; classes and links are learned of a graph",
            where="train.task",
            hint="In Python: PyGTrainer(task=…).fit(graph, …)",
        )
    if p.graph.shards is not None and (isinstance(trainer, TwoTowerTrainer) or trainer.neighbors is None):
        raise ConfigError(
            "shards are sampled from, and this training propagates over the whole graph",
            where="graph.shards",
            hint="Set train.model: graphsage and train.neighbors: [15, 10], say",
        )
    model = trainer.base.model if isinstance(trainer, TwoTowerTrainer) else trainer.model
    if isinstance(model, Custom):
        _check_model(model)


def _trainer(p: Pipeline) -> PyGTrainer | TwoTowerTrainer:
    trainer: Trainer = p.train
    if not isinstance(trainer, PyGTrainer | TwoTowerTrainer):
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


def _options(step: StepContext, tracked: Run, p: Pipeline) -> dict[str, Any]:
    """Who is told of the epochs, and where the graph is sampled, by the names of the arguments of `fit`."""
    if isinstance(p.train, TwoTowerTrainer):
        return {"on_epoch": _teller(step, tracked), "on_base_epoch": _teller(step, tracked, "base")}
    return {"on_epoch": _teller(step, tracked), "shards": p.graph.shards}


def _teller(step: StepContext, tracked: Run, part: str = "") -> Any:
    def on_epoch(metrics: Mapping[str, float]) -> None:
        refit = metrics["phase"] == 1
        prefix = f"{f'{part}/' if part else ''}{'refit/' if refit else ''}"
        values = {f"{prefix}{k}": v for k, v in metrics.items() if k not in {"phase", "epochs", "epoch"}}
        tracked.log_metrics(
            {f"train/{name}": value for name, value in values.items()}, step=int(metrics["epoch"])
        )
        shown = next(
            (f", {name} {value:.4f}" for name, value in metrics.items() if name.startswith("ndcg@")), ""
        )
        text = f"{f'{part}: ' if part else ''}{'again on all of the history, ' if refit else ''}epoch {metrics['epoch']}, loss {metrics['loss']:.4f}{shown}"
        step.progress(metrics["epoch"], metrics["epochs"], text)

    return on_epoch


def _track_results(work: EventWork) -> None:
    import pyarrow as pa

    from sp_ray_ml._step_output import load_metrics

    p, tracked, recommender = work.pipeline, work.tracked, work.recommender
    table = load_metrics(work.output("evaluate"))
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
        for h in read_json(work.output("train") / "history.json")
        if h["phase"] == 0
    ]
    if history:
        tracked.log_plot("history", history, "plots/history.png", f"{p.name}: training")
    if p.tracking.model:
        users = pa.table({recommender.user_column: recommender.user_ids[:3]})
        tracked.log_model(
            work.output("train") / "predictor",
            signature=recommender.mlflow_signature(),
            input_example=recommender.input_example(users),
            register=p.tracking.register,
        )
