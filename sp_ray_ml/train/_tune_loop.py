"""How a tuning goes: what an earlier start has left is recalled, the rest is run, the best is sealed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._places import url_of
from sp_ray_ml.config import fingerprint
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.storage import Lock
from sp_ray_ml.train._resources import available, check_tuning
from sp_ray_ml.train._tune_data import likeness, movable
from sp_ray_ml.train._tune_run import run_on_ray
from sp_ray_ml.train._tune_schedule import milestones
from sp_ray_ml.train._tune_search import search_of
from sp_ray_ml.train._tune_store import TrialStore
from sp_ray_ml.train._tune_tracking import TrialTracking
from sp_ray_ml.train._tune_trial import TrialJob
from sp_ray_ml.train._tuning import Tuning
from sp_ray_ml.train.table import new_training_folder
from sp_ray_ml.train.tuning import OnTrial, Trial, Tune, TuneResult, check_space

if TYPE_CHECKING:
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.train.trainer import Trainer

__all__ = ["tune"]


def tune(
    trainer: Trainer,
    train: Any,
    validation: Any,
    settings: Tune,
    *,
    seed: int,
    folder: str | Path | None,
    on_trial: OnTrial,
    run: Run | None,
    options: Mapping[str, Any],
    prefix: str = "",
) -> TuneResult:
    """See `Trainer.tune`."""
    check_space(trainer, settings)
    if validation is None and trainer.tuned_on_validation:
        raise ConfigError("tuning needs validation rows to choose by", where="validation")
    search = search_of(settings, seed)
    at_a_time = check_tuning(
        trainer.scaling, settings.count, settings.max_concurrent, available(trainer.scaling)
    )
    place = (
        new_training_folder(f"{type(trainer).__name__}-tune") if folder is None else Path(folder)
    ).absolute()
    place.mkdir(parents=True, exist_ok=True)
    with Lock(place / ".lock", "the tuning"):
        url = url_of(place)
        train, validation = movable(train, "train", url), movable(validation, "validation", url)
        key = fingerprint(
            trainer,
            settings.model_copy(update={"trials": None, "max_concurrent": None, "time_budget": None}),
            seed,
            [likeness(train), likeness(validation), {name: likeness(v) for name, v in options.items()}],
        )
        store = TrialStore(place, key, url)
        tracking = None if run is None else TrialTracking(run, store.history)
        tuning = Tuning(trainer, settings, search, store, _both(on_trial, tracking))
        tuning.recall()
        if tuning.left:
            job = TrialJob(
                trainer,
                train,
                validation,
                seed,
                place,
                url,
                settings.metric,
                settings.mode,
                milestones(trainer, settings),
                settings.scheduler in {"none", "asha"},
                settings.scheduler == "pbt",
                options,
            )
            run_on_ray(tuning, job, at_a_time)
        result = tuning.result()
        if tracking is not None:
            tracking.best(result, prefix)
        return result


def _both(on_trial: OnTrial, tracking: TrialTracking | None) -> OnTrial:
    if tracking is None:
        return on_trial

    def told(trial: Trial) -> None:
        tracking.show(trial)
        on_trial(trial)

    return told
