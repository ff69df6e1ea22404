"""Predictions with the predictor that is there, on the warehouse as it is now, without training.

read ──▶ renew ──▶ predict ──▶ write     of `events`: the events since the training, and the nodes of now
predict                                  of a `table`: its rows of now
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._job import events_of, input_fingerprints, write_outputs
from sp_ray_ml._predict_sealed import Sealed, own_trainer
from sp_ray_ml._runs import RunFolder, Step, StepContext
from sp_ray_ml.config import fingerprint, redact

if TYPE_CHECKING:
    from sp_ray_ml.inference.settings import Predict
    from sp_ray_ml.pipeline import Pipeline
    from sp_ray_ml.train._renewal import History

__all__ = ["PREDICT", "PredictResult", "run"]

PREDICT = "predict"
"""Folder of the job within the run's."""


@dataclass(frozen=True, repr=False)
class PredictResult:
    """What `predict` gives.

    Attributes:
        predictor: Where the predictor came from: a path, an MLflow URI or an import path.
        outputs: Tables that were written, and the warehouse of each.
        path: Folder of what was done.
        steps: What each step left.
        figures: Of `events`: `events` and `new_events`, `users`, `new_users` and `gone_users`, likewise items, and
            `rows` predicted. Of a `table`: `rows`. Of both `rows_per_second` (of those rows that no earlier start had
            predicted), `seconds` and `worker_hours`.
        mlflow_run_id: The run in MLflow; None where tracking is off or the server has not answered.
        url: Where the folder is kept, if that is a URL.
    """

    predictor: str
    outputs: Mapping[str, str]
    path: Path
    steps: Sequence[Step]
    figures: Mapping[str, float] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    url: str | None = None

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{value:,} {name.replace('_', ' ')}"
            for name, value in self.figures.items()
            if value and isinstance(value, int)
        )
        return f"PredictResult({shown}, {'url' if self.url else 'path'}={self.url or str(self.path)!r})"

    @property
    def checkpoint_path(self) -> Path | None:
        """Folder of the predictor that the predictions are of: of `events` the renewed one. None where it is no folder."""
        renewed, given = self.path / "steps" / "renew" / "predictor", Path(self.predictor)
        return renewed if renewed.exists() else given if given.exists() else None


def run(p: Pipeline, folder: RunFolder, sealed: Sealed, *, all_events: bool) -> PredictResult:
    """The job, from top to bottom.

    Args:
        p: The pipeline.
        folder: Of this job, inside the run's.
        sealed: From `open_predictor`.
        all_events: Read the whole table of events, not only what came since the training.
    """
    assert p.predict is not None  # `open_predictor` has looked
    began = time.perf_counter()
    if p.table is not None:
        result = _predict_rows(p, folder, sealed, p.predict)
    else:
        result = _predict_users(p, folder, sealed, p.predict, all_events)
    seconds = time.perf_counter() - began
    predicted = next(step for step in result.steps if step.name == "predict")
    usual = round(result.figures["rows"] / seconds)
    rate = 0 if predicted.kept else predicted.summary.get("rows_per_second", usual)
    cost = {"rows_per_second": rate, "seconds": round(seconds, 3), "worker_hours": round(seconds / 3600, 6)}
    return replace(result, figures={**result.figures, **cost})


# --- events -----------------------------------------------------------------------------------------------------


def _predict_users(
    p: Pipeline, folder: RunFolder, sealed: Sealed, predict: Predict, all_events: bool
) -> PredictResult:
    from sp_ray_ml._event_steps import measuring, predicting, reading
    from sp_ray_ml._event_steps.catalog import Catalog
    from sp_ray_ml._event_steps.training import load_recommender
    from sp_ray_ml.data.warehouse import open_warehouse

    events, recommender = events_of(p), sealed.recommender
    warehouse = open_warehouse(p.warehouse)
    since = None if all_events or not events.time else recommender.renewal.complete_before
    tables = [events.table, *(node.table for node in (p.nodes.user, p.nodes.item) if node is not None)]
    marks = input_fingerprints(warehouse, tables)
    read = folder.step(
        "read",
        lambda step: reading.read(step, warehouse, events, p.nodes, since=since),
        inputs=[events, p.nodes, marks, since],
        code=["data", "_event_steps/catalog.py", "_event_steps/reading.py"],
    )
    renewed = folder.step(
        "renew",
        lambda step: _renew(step, p, sealed, Catalog.load(read.folder), since),
        inputs=[sealed.mark, since, events.unknown],
        after=[read],
        code=["train", "graph", "metrics"],
    )
    _say(folder, renewed.summary)
    fresh = load_recommender(renewed.folder)
    measuring.check_k({"predict.k": predict.k}, fresh.num_items)
    users = input_fingerprints(warehouse, [predict.users] if predict.users else [])
    predicted = folder.step(
        "predict",
        lambda step: predicting.predict(step, fresh, warehouse, predict),
        inputs=[predict.k, predict.users, users],
        after=[renewed],
        code=["inference", "metrics", "_event_steps/predicting.py"],
    )
    outputs = write_outputs(
        folder,
        predict,
        predicted,
        lambda step, commit: predicting.write(step, predicted.folder, fresh, predict, commit),
    )
    figures = {name: value for name, value in renewed.summary.items() if isinstance(value, int)}
    figures["rows"] = int(predicted.summary["rows"])
    return PredictResult(sealed.source, outputs, folder.path, folder.steps, figures)


def _renew(step: StepContext, p: Pipeline, sealed: Sealed, catalog: Any, since: int | None) -> dict[str, Any]:
    """The graph of all events until now, one pass of the trained weights over it, and a new predictor."""
    from sp_ray_ml.train._renew import renew
    from sp_ray_ml.train._renew_nodes import EARLIEST, Arrived

    recommender, events = sealed.recommender, events_of(p)
    renewal = recommender.renewal
    title = p.nodes.item.title if p.nodes.item is not None else None
    arrived = Arrived(
        ids=catalog.ids,
        events=_history(catalog, since, rated=renewal.graph.weight == "rating"),
        rows=catalog.nodes,
        titles=catalog.nodes["item"][title].combine_chunks() if title else None,
        since=EARLIEST if since is None else since,
    )
    found, figures = renew(recommender, arrived, unknown=events.unknown, trainer=own_trainer(p, sealed))
    figures["until"] = None if renewal.complete_before is None else _iso(renewal.complete_before)
    found.save(step.output / "predictor", about={"renewed": {"from": sealed.mark, **figures}})
    return figures


def _history(catalog: Any, since: int | None, *, rated: bool) -> History:
    """The events that were read; a column of days, say, gave more than those from `since` on."""
    from sp_ray_ml.train._renewal import History

    user, item = catalog.pairs()
    time, rating = catalog.column("time"), catalog.column("rating") if rated else None
    found = [user, item, time, rating]
    if since is not None and time is not None:
        kept = time >= since
        found = [None if each is None else each[kept] for each in found]
    return History(*found)


def _say(folder: RunFolder, figures: Mapping[str, Any]) -> None:
    for name in ("users", "items"):
        if gone := figures[f"gone_{name}"]:
            folder.reporter.note(f"{gone:,} {name} of the training are no longer in their table: left out")
    came = any(figures[name] for name in ("new_events", "new_users", "new_items", "gone_users", "gone_items"))
    if not came:
        folder.reporter.note("nothing new: the recommendations are those of the training")


def _iso(nanoseconds: int) -> str:
    seconds = nanoseconds // 1_000_000_000
    return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="seconds")


# --- a table ----------------------------------------------------------------------------------------------------


def _predict_rows(p: Pipeline, folder: RunFolder, sealed: Sealed, predict: Predict) -> PredictResult:
    from sp_ray_ml.data.warehouse import open_warehouse
    from sp_ray_ml.inference.batch_prediction import batch_predict

    assert p.table is not None  # this job is that of a `table`
    warehouse, query = open_warehouse(p.warehouse), predict.rows or p.table.table
    marks = input_fingerprints(warehouse, [query])
    mark = fingerprint(sealed.mark, marks, predict)

    def work(step: StepContext) -> dict[str, Any]:
        result = batch_predict(
            sealed.found,
            warehouse.source(query),
            predict.output,
            folder=step.scratch / "parts",
            commit=f"{folder.info['id']}:{mark}",
            progress=step.progress,
        )
        return {"rows": result.rows, "rows_per_second": round(result.rows_per_second)}

    done = folder.step("predict", work, inputs=[sealed.mark, marks, predict], keep=False)
    outputs = {predict.output.table: redact(predict.output.warehouse)}
    figures = {"rows": int(done.summary["rows"])}
    return PredictResult(sealed.source, outputs, folder.path, folder.steps, figures)
