"""A training loop on workers of Ray Train."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml._places import adopt, homes
from sp_ray_ml.errors import TrainingError
from sp_ray_ml.logger import LOGGER
from sp_ray_ml.storage import storage_errors
from sp_ray_ml.train._checkpoints import LoopResult
from sp_ray_ml.train._ray_context import RayContext
from sp_ray_ml.train._ray_place import fetched, ray_storage, told_in
from sp_ray_ml.train._ray_start import ray_running
from sp_ray_ml.train._ray_workers import Follow, cause_of, fit, ray_trainer, scaling_config

if TYPE_CHECKING:
    import ray.train

    from sp_ray_ml.train.context import Backend, Metrics, TrainLoop
    from sp_ray_ml.train.settings import Scaling

__all__ = ["run_on_ray"]


def run_on_ray(
    loop: TrainLoop,
    job: Any,
    scaling: Scaling,
    folder: Path,
    on_report: Callable[[Metrics], None],
    backend: Backend,
) -> LoopResult:
    """As `run_loop`, where there are workers."""
    import ray
    import ray.train

    folder = folder.resolve()
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ray_running():
        told = told_in(folder)
        config = {
            # Ray Train's own processes take the config apart too, and need neither the frameworks nor the data.
            "work": ray.put((loop, job)),
            "backend": backend,
            "told": told,
            "homes": homes(),
            "sys_path": [*sys.path, str(Path.cwd())],
        }
        try:
            with Follow(told, on_report):
                try:
                    result = _fit(config, scaling, folder)
                except ray.train.WorkerGroupError as error:
                    if not _place_was_lost(error):
                        raise
                    LOGGER.warning("Ray took the workers' place away; they are started once more: %s", error)
                    result = _fit(config, scaling, folder)
        except ray.train.TrainingFailedError as error:
            raise cause_of(error) from error
    if result.checkpoint is None:
        raise TrainingError("training ended without a single epoch", where="train.epochs")
    best = max(result.best_checkpoints, key=lambda pair: pair[1]["_score"])[0]
    return LoopResult(fetched(result.checkpoint, folder, "last"), fetched(best, folder, "best"))


def _fit(config: dict[str, Any], scaling: Scaling, folder: Path) -> ray.train.Result:
    """Train, from the last checkpoint on where there is one."""
    import ray.train

    trainer = ray_trainer(config["backend"])(
        _worker,
        train_loop_config=config,
        scaling_config=scaling_config(scaling),
        run_config=ray.train.RunConfig(
            **ray_storage(folder),
            failure_config=ray.train.FailureConfig(max_failures=scaling.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute="_score", checkpoint_score_order="max"
            ),
        ),
    )
    return fit(trainer)


def _place_was_lost(error: ray.train.WorkerGroupError) -> bool:
    """Whether Ray itself ended the workers: no node was lost, and nothing of the user's failed.

    Ray Train does so where it takes its controller for dead: it asks for that at the Ray which the machine names in
    `ray_current_cluster`, which may be another one.
    """
    return "placement group was removed" in str(error)


def _worker(config: dict[str, Any]) -> None:
    import ray

    # A worker has a working directory of its own; modules that lie beside the user's config are found all the same.
    sys.path.extend(path for path in config["sys_path"] if path not in sys.path)
    context = RayContext
    if config["backend"] == "tensorflow":
        from sp_ray_ml.train._keras_context import KerasContext

        context = KerasContext
    adopt(config["homes"])
    loop, job = ray.get(config["work"])
    loop(context(config["told"]), job)
