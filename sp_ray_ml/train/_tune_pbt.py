"""Population based training: all trials train a part at a time, and the worst go on from the best with other values.

After the method of Jaderberg et al., "Population Based Training of Neural Networks" (2017), by Ray Tune's scheduler.
A part is a training that starts from the model of the part before, so it works for every trainer that can do that.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.config import fingerprint
from sp_ray_ml.storage import new_folder, read_json, write_json
from sp_ray_ml.train._tune_store import EVOLUTION

if TYPE_CHECKING:
    from sp_ray_ml.train._tune_place import TrialPlace
    from sp_ray_ml.train._tune_trial import Reporter, TrialJob
    from sp_ray_ml.train.table import TrainResult
    from sp_ray_ml.train.tuning import Tune

__all__ = ["PARTS", "evolve", "pbt_scheduler"]

PARTS = 5
"""Parts that each training has: after each but the last, the worst quarter goes on from the best quarter."""


def pbt_scheduler(settings: Tune) -> Any:
    """Ray Tune's scheduler, with values that stay in the space."""
    from ray import tune
    from ray.tune.schedulers import PopulationBasedTraining

    mutations = {
        name: domain.values
        if domain.values is not None
        else tune.loguniform(*domain.extremes)
        if domain.loguniform
        else tune.uniform(*domain.extremes)
        for name, domain in settings.space.items()
    }

    def inside(config: dict[str, Any]) -> dict[str, Any]:
        for name, domain in settings.space.items():
            if domain.values is None:
                low, high = domain.extremes
                config["params"][name] = min(max(config["params"][name], low), high)
        return config

    return PopulationBasedTraining(
        time_attr="part",
        perturbation_interval=1,
        hyperparam_mutations={"params": mutations},
        custom_explore_fn=inside,
        require_attrs=False,
        log_config=False,
    )


def evolve(
    job: TrialJob, params: Mapping[str, Any], place: TrialPlace, reporter: Reporter, fit: Any
) -> TrainResult:
    """Train part after part, from where this trial stands, or the one that it was told to go on from.

    Args:
        job: What all trials share.
        params: The values of the next part.
        place: The trial's.
        reporter: Hears of the epochs.
        fit: `fit(job, params, folder, reporter, **more)`, a training.
    """
    from ray import tune

    name = job.trainer.epochs_setting
    assert name is not None
    state: dict[str, Any] = {"part": 0, "predictor": None, "history": []}
    if (checkpoint := tune.get_checkpoint()) is not None:
        with checkpoint.as_directory() as where:
            state = read_json(Path(where) / EVOLUTION)
    elif (known := place.evolution()) is not None:
        state = known
    result: TrainResult | None = None
    while state["part"] < PARTS:
        part = state["part"] + 1
        whole = int(params.get(name, getattr(job.trainer, name)))
        # What is learned with other values or from another trial is another training.
        own = place.folder / f"part-{part}-{fingerprint(params, state['predictor'])[:8]}"
        more = {} if state["predictor"] is None else {"start_from": state["predictor"]}
        reporter.before = len(state["history"])
        result = fit(job, {**params, name: max(1, whole // PARTS)}, own, reporter, **more)
        history = [*state["history"], *_numbered(result.history, len(state["history"]))]
        state = {
            "part": part,
            "predictor": place.shared(own / "predictor"),
            "history": history,
            "params": dict(params),
        }
        place.evolve_to(state)
        if part < PARTS:
            _report(job, reporter, result, state)
    if result is None:  # killed after the last part, or told to go on from a trial that was through
        own = place.folder / "through"
        result = fit(job, {**params, name: 1}, own, reporter, start_from=state["predictor"])
    with new_folder(place.folder / "predictor") as target:
        shutil.copytree(result.predictor_path, target, dirs_exist_ok=True)
    result.history[:] = state["history"]
    return result


def _numbered(history: list[dict[str, Any]], before: int) -> list[dict[str, Any]]:
    return [{**row, "epoch": before + place} for place, row in enumerate(history, 1)]


def _report(job: TrialJob, reporter: Reporter, result: TrainResult, state: Mapping[str, Any]) -> None:
    from ray import tune

    with tempfile.TemporaryDirectory(prefix="sp_ray_ml-") as folder:
        write_json(Path(folder) / EVOLUTION, state)
        tune.report(
            {
                "part": state["part"],
                "epoch": len(state["history"]),
                "metrics": dict(result.metrics),
                "score": job.score(result.metrics),
            },
            checkpoint=tune.Checkpoint.from_directory(folder),
        )
    reporter.epoch = len(state["history"])
