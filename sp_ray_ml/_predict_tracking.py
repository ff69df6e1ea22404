"""A night of `sp-ray predict` in MLflow: a run of its own, in the training's experiment and nested in its run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sp_ray_ml._runs import read_run_file
from sp_ray_ml.storage import remove
from sp_ray_ml.tracking import Run, tracking_uri
from sp_ray_ml.tracking._process import pending_of
from sp_ray_ml.tracking._state import STATE, SendState
from sp_ray_ml.tracking._store import redact_uri

if TYPE_CHECKING:
    from sp_ray_ml._predict_sealed import Sealed
    from sp_ray_ml._runs import RunFolder
    from sp_ray_ml.pipeline import Pipeline

__all__ = ["end_night", "open_night"]

_NIGHTS = "nights"


def open_night(p: Pipeline, folder: RunFolder, sealed: Sealed) -> Run:
    """The night's run: a new one, or that of a night which was broken off.

    Journals of earlier nights are removed when MLflow has all of them; `sp-ray sync` sends those that stay.

    Args:
        p: The pipeline.
        folder: Of the prediction; the journal lies below it.
        sealed: What predicts.
    """
    here = folder.path / _NIGHTS / f"{_number(folder):04}"
    for night in folder.path.glob(f"{_NIGHTS}/*"):
        state = SendState.read(night)
        if night != here and state.run_id and not pending_of(night, state):
            remove(night)
    trained = sealed.found.predictor.manifest.get("run") or {}
    tags = {
        "kind": "predict",
        "predictor": sealed.source,
        "predictor_mark": sealed.mark,
        "trained_by": trained.get("name"),
        "trained_by_id": trained.get("id"),
        "mlflow.parentRunId": _parent(p, trained.get("id")),
    }
    return Run.open(
        here,
        name=f"{p.name} predict",
        settings=p.tracking.model_copy(update={"experiment": p.tracking.experiment or p.name}),
        tags={name: value for name, value in tags.items() if value is not None},
        runs_folder=p.runs,
        place=folder.url and f"{folder.url}/{here.relative_to(folder.path)}",
    )


def end_night(folder: RunFolder) -> None:
    """The next one is another run."""
    folder.save(nights=_number(folder))


def _number(folder: RunFolder) -> int:
    return int(folder.info.get("nights", 0)) + 1


def _parent(p: Pipeline, trained: str | None) -> str | None:
    """The training's run in MLflow, where that is this pipeline's and in the same place."""
    state = SendState.of(read_run_file(p.folder, STATE))
    try:
        own = json.loads(read_run_file(p.folder, "run.json") or b"{}").get("id") == trained
    except ValueError:
        own = False
    uri = tracking_uri(p.tracking, p.runs)
    same = bool(uri) and state.tracking_uri == redact_uri(uri)
    return state.run_id if own and trained and same else None
