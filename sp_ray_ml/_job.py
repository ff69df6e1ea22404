"""What the jobs that a pipeline can be have in common: what they plan, what they give, where they write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._runs import RunFolder, Step, StepContext
from sp_ray_ml.config import dump, redact
from sp_ray_ml.inference.settings import Predict

if TYPE_CHECKING:
    import ray.train

    from sp_ray_ml.data.settings import Events
    from sp_ray_ml.data.warehouse import Warehouse
    from sp_ray_ml.pipeline import Pipeline

__all__ = [
    "PlannedStep",
    "RunResult",
    "about",
    "events_of",
    "input_fingerprints",
    "planned_write",
    "result_of",
    "tables_written",
    "write_outputs",
]


@dataclass(frozen=True, repr=False)
class RunResult:
    """What a run gives.

    Attributes:
        metrics: Of the trained model on what was held out: `recall@20`, `ndcg@20/cold_items`, … of events; `rmse`,
            `accuracy`, … of a table.
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
        ranking = any("@" in name for name in self.metrics)
        shown = ", ".join(
            f"{name} {value:.4f}"
            for name, value in self.metrics.items()
            if (name.startswith(("recall@", "ndcg@")) and "/" not in name) or (not ranking and name != "rows")
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
        lambda step: write(step, f"{folder.info['id']}:{predicted.fingerprint}"),
        inputs=[predict],
        after=[predicted],
        keep=False,
    )
    return dict.fromkeys(written.summary["tables"], redact(predict.output.warehouse))


def result_of(
    metrics: Mapping[str, Mapping[str, Any]], outputs: Mapping[str, str], folder: RunFolder
) -> RunResult:
    """What a job gives that has taken all its steps; `metrics` are by model, the trained one is `model`."""
    baselines = {name: row for name, row in metrics.items() if name != "model"}
    return RunResult(metrics["model"], baselines, outputs, folder.path, None, folder.steps)


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
