"""Predictions with the predictor that is there, on the warehouse as it is now, without training.

read ──▶ renew ──▶ predict ──▶ write     of `events`: the events since the training, and the nodes of now
predict                                  of a `table`: its rows of now
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

__all__ = ["PredictResult", "run"]


@dataclass(frozen=True, repr=False)
class PredictResult:
    """What `predict` gives.

    Attributes:
        predictor: Where the sealed predictor came from.
        outputs: Tables that were written, and the warehouse of each.
        path: Folder of what was done.
        steps: What each step left.
        figures: Of `events`: `events` and `new_events`, `users`, `new_users` and `gone_users`, likewise items, and
            `rows` predicted. Of a `table`: `rows`.
    """

    predictor: str
    outputs: Mapping[str, str]
    path: Path
    steps: Sequence[Step]
    figures: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{value:,} {name.replace('_', ' ')}" for name, value in self.figures.items() if value
        )
        return f"PredictResult({shown}, path={str(self.path)!r})"

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the predictor that the predictions are of: of `events` the renewed one."""
        renewed = self.path / "steps" / "renew" / "predictor"
        return renewed if renewed.exists() else Path(self.predictor)


def run(p: Pipeline, folder: RunFolder, sealed: Sealed, *, all_events: bool) -> PredictResult:
    """The job, from top to bottom.

    Args:
        p: The pipeline.
        folder: Of this job, inside the run's.
        sealed: From `open_predictor`.
        all_events: Read the whole table of events, not only what came since the training.
    """
    assert p.predict is not None  # `open_predictor` has looked
    if p.table is not None:
        return _predict_rows(p, folder, sealed, p.predict)
    return _predict_users(p, folder, sealed, p.predict, all_events)


# --- events -----------------------------------------------------------------------------------------------------


def _predict_users(
    p: Pipeline, folder: RunFolder, sealed: Sealed, predict: Predict, all_events: bool
) -> PredictResult:
    from sp_ray_ml import _steps
    from sp_ray_ml.data.warehouse import open_warehouse

    events, recommender = events_of(p), sealed.recommender
    warehouse = open_warehouse(p.warehouse)
    since = None if all_events or not events.time else recommender.renewal.complete_before
    tables = [events.table, *(node.table for node in (p.nodes.user, p.nodes.item) if node is not None)]
    marks = input_fingerprints(warehouse, tables)
    read = folder.step(
        "read",
        lambda step: _steps.read(step, warehouse, events, p.nodes, since=since),
        inputs=[events, p.nodes, marks, since],
        code=["data", "_steps.py"],
    )
    renewed = folder.step(
        "renew",
        lambda step: _renew(step, p, sealed, _steps.Catalog.load(read.folder), since),
        inputs=[sealed.mark, since, events.unknown],
        after=[read],
        code=["train", "graph", "metrics"],
    )
    _say(folder, renewed.summary)
    fresh = _steps.load_recommender(renewed.folder)
    _steps.check_k({"predict.k": predict.k}, fresh.num_items)
    users = input_fingerprints(warehouse, [predict.users] if predict.users else [])
    predicted = folder.step(
        "predict",
        lambda step: _steps.predict(step, fresh, warehouse, predict),
        inputs=[predict.k, predict.users, users],
        after=[renewed],
        code=["inference", "metrics"],
    )
    outputs = write_outputs(
        folder,
        predict,
        predicted,
        lambda step, commit: _steps.write(step, predicted.folder, fresh, predict, commit),
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
            sealed.predictor,
            warehouse.source(query),
            predict.output,
            folder=step.scratch / "parts",
            commit=f"{folder.info['id']}:{mark}",
            progress=step.progress,
        )
        return {"rows": result.rows, "rows_per_second": int(result.rows_per_second)}

    done = folder.step("predict", work, inputs=[sealed.mark, marks, predict], keep=False)
    outputs = {predict.output.table: redact(predict.output.warehouse)}
    figures = {"rows": int(done.summary["rows"])}
    return PredictResult(sealed.source, outputs, folder.path, folder.steps, figures)
