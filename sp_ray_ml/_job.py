"""What the jobs that a pipeline can be have in common: a list of steps, what they plan, what they give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sp_ray_ml._runs import RunFolder, Step, StepContext
from sp_ray_ml.config import dump, redact
from sp_ray_ml.inference.settings import Predict
from sp_ray_ml.storage import read_json

if TYPE_CHECKING:
    import ray.train

    from sp_ray_ml.data.settings import Events
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.tracking.run import Run

__all__ = [
    "JobStep",
    "PlannedStep",
    "RunResult",
    "Work",
    "about",
    "events_of",
    "input_fingerprints",
    "planned_write",
    "run_steps",
    "table_fingerprints",
    "tables_written",
    "take_step",
    "write_outputs",
]


@dataclass
class Work:
    """What the steps of one run share. A job adds what it opens of the steps that are done.

    Attributes:
        pipeline: The config.
        folder: The run's folder.
        tracked: The run in MLflow.
        tables: What tells the present data of each table or query from other data.
        done: What each step left that has been taken.
    """

    pipeline: Pipeline
    folder: RunFolder
    tracked: Run
    tables: Mapping[str, str]
    done: dict[str, Step] = field(default_factory=dict)

    def output(self, name: str) -> Path:
        """Where a step left its output."""
        return self.done[name].folder

    @property
    def commit(self) -> str:
        """Names what is predicted: the warehouse knows by it what it has."""
        assert self.pipeline.predict is not None
        return _commit(self.folder, self.pipeline.predict, self.done["predict"])


W = TypeVar("W", bound=Work)


def _nothing(work: Work) -> None:
    """Nothing follows."""


@dataclass(frozen=True)
class JobStep(Generic[W]):
    """A step of a job. It can be taken anywhere that the output of the steps is which it reads.

    Attributes:
        name: Its name.
        work: Writes its output and returns a summary.
        reads: Steps whose output it opens. The last of them is the one it comes after: a fingerprint of that one
            stands for all that was before.
        tables: Tables and queries of the warehouse that it reads.
        inputs: Settings that it depends on.
        code: Parts of the package that it runs, beside those of the steps before.
        keep: Whether an unchanged output may be kept; without, the step always runs.
        then: What follows when its output is there, made or kept: that it is opened, which finds a damaged one, or that
            what it says is checked or tracked.
    """

    name: str
    work: Callable[[StepContext, W], dict[str, Any]]
    reads: Sequence[str] = ()
    tables: Sequence[str] = ()
    inputs: Sequence[Any] = ()
    code: Sequence[str] = ()
    keep: bool = True
    then: Callable[[W], object] = _nothing


def take_step(step: JobStep[W], work: W) -> Step:
    """Take a step, or keep its output, in the run's folder."""
    tables = {name: work.tables[name] for name in step.tables}
    done = work.folder.step(
        step.name,
        lambda context: step.work(context, work),
        inputs=[*step.inputs, *([tables] if tables else [])],
        after=[work.done[name] for name in step.reads[-1:]],
        code=step.code,
        keep=step.keep,
    )
    work.done[step.name] = done
    step.then(work)
    return done


def run_steps(steps: Sequence[JobStep[W]], work: W) -> RunResult:
    """A job, from top to bottom."""
    work.tracked.log_tags({f"data.{table}": mark for table, mark in work.tables.items()})
    for step in steps:
        take_step(step, work)
    return _result(work)


def _result(work: Work) -> RunResult:
    metrics = read_json(work.output("evaluate") / "metrics.json")
    baselines = {name: row for name, row in metrics.items() if name != "model"}
    outputs: dict[str, str] = {}
    if (predict := work.pipeline.predict) is not None:
        outputs = _written(predict, work.done["write"])
    return RunResult(
        metrics["model"], baselines, outputs, work.folder.path, None, work.folder.steps, work.folder.url
    )


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run gives.

    Attributes:
        metrics: Of the trained model on what was held out: `recall@20`, `ndcg@20/cold_items`, … of events; `rmse`,
            `accuracy`, … of a table.
        baselines: The same for each baseline.
        outputs: Tables that were written, and the warehouse of each.
        path: The run's folder on this machine.
        mlflow_run_id: The run in MLflow; None where tracking is off or the server has not answered.
        steps: What each step left.
        url: Where the run's folder is kept, if that is a URL; `path` then has what this machine has of it.
    """

    metrics: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, str]
    path: Path
    mlflow_run_id: str | None
    steps: Sequence[Step]
    url: str | None = None

    def __repr__(self) -> str:
        ranking = any("@" in name for name in self.metrics)
        shown = ", ".join(
            f"{name} {value:.4f}"
            for name, value in self.metrics.items()
            if (name.startswith(("recall@", "ndcg@")) and "/" not in name) or (not ranking and name != "rows")
        )
        return f"RunResult({shown}, {'path' if self.url is None else 'url'}={self.place!r})"

    @property
    def place(self) -> str:
        """Where the run's folder is: its URL, or its path."""
        return self.url or str(self.path)

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


def events_of(p: Pipeline) -> Events:
    """The events of a job that is one of `events`."""
    assert p.events is not None
    return p.events


def tables_written(predict: Predict) -> list[str]:
    """The tables that batch prediction writes."""
    output = predict.output
    return [table for table in (output.table, output.embeddings.user, output.embeddings.item) if table]


def planned_write(predict: Predict) -> PlannedStep:
    """What the last step will do."""
    place, mode = redact(predict.output.warehouse), predict.output.mode
    return PlannedStep("write", ["predict"], [f"{place}: {t} ({mode})" for t in tables_written(predict)])


def write_outputs(
    folder: RunFolder,
    predict: Predict,
    predicted: Step,
    write: Callable[[StepContext, str], dict[str, Any]],
) -> dict[str, str]:
    """The last step, which is always taken: the warehouse knows what was committed.

    What is there is not written again, what is gone is.

    Args:
        folder: The run's.
        predict: Where to.
        predicted: The step before.
        write: Writes its output under the name of the commit that it is given.

    Returns:
        The warehouse of each table.
    """
    written = folder.step(
        "write",
        lambda step: write(step, _commit(folder, predict, predicted)),
        inputs=[predict],
        after=[predicted],
        keep=False,
    )
    return _written(predict, written)


def _commit(folder: RunFolder, predict: Predict, predicted: Step) -> str:
    name = f"{folder.info['id']}:{predicted.fingerprint}"
    if predict.output.mode == "append":  # these rows stay, whatever comes after them
        return name
    # Back at former settings: what has come between is to be written over, though the warehouse has had these rows.
    last = folder.info.get("written")
    if last is None or last["name"] != name:
        last = {"name": name, "times": 0 if last is None else last["times"] + 1}
        folder.remember(written=last)
    return f"{name}:{last['times']}" if last["times"] else name


def _written(predict: Predict, written: Step) -> dict[str, str]:
    return dict.fromkeys(written.summary["tables"], redact(predict.output.warehouse))


def table_fingerprints(p: Pipeline, steps: Iterable[JobStep[Any]]) -> dict[str, str]:
    """What tells the present data of the tables that steps read from other data."""
    from sp_ray_ml.data.warehouse import open_warehouse

    return input_fingerprints(
        open_warehouse(p.warehouse), dict.fromkeys(table for step in steps for table in step.tables)
    )


def input_fingerprints(warehouse: Warehouse, queries: Iterable[str]) -> dict[str, str]:
    """What tells the present data of each table or query from other data."""
    from sp_ray_ml.data.warehouse import is_sql

    marks = {}
    for query in queries:
        tables = warehouse.tables() if is_sql(query) else [query]
        marks[query] = "-".join(warehouse.fingerprint(table) for table in tables)
    return marks


def about(p: Pipeline, folder: RunFolder) -> dict[str, Any]:
    """What a predictor's manifest says of the run that made it."""
    from sp_ray_ml.tracking import environment_tags

    return {
        "run": {"name": p.name, "id": folder.info["id"]},
        "environment": environment_tags(),
        "config": dump(p),
    }
