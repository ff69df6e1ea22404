"""A tuning on Ray Tune, in processes that are used again."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sp_ray_ml._variables import variables
from sp_ray_ml.train._ray_place import ray_storage
from sp_ray_ml.train._resources import trial_resources
from sp_ray_ml.train._tune_schedule import scheduler
from sp_ray_ml.train._tune_trial import TrialJob, run_trial, trial_name
from sp_ray_ml.train._tuning import Tuning

__all__ = ["run_on_ray"]

# Nothing of Ray Tune's own bookkeeping is needed: no files for each trial, no copies of its state, no signal handler.
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "30",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_on_ray(tuning: Tuning, job: TrialJob, at_a_time: int) -> None:
    """Run what is left of a tuning's trials, so many at a time; started Ray ends with it."""
    with _quietly():
        import ray
        from ray import tune as ray_tune

        from sp_ray_ml.train._ray_start import ray_running
        from sp_ray_ml.train._tune_ray import Follower, Proposals

        with ray_running():
            reference = ray.put(job)
            path = [*sys.path, str(Path.cwd())]

            def trial(config: Mapping[str, Any]) -> None:
                run_trial(config, reference, path)

            needs = trial_resources(job.trainer.scaling)
            space: Any = None
            search: Any = Proposals(tuning, at_a_time)
            if job.pbt:
                # A population takes turns, and Ray Tune lets no search make it: what limits it is the room for each.
                population = dict(iter(tuning.next, None))
                space = {
                    "number": ray_tune.grid_search(list(population)),
                    "params": ray_tune.sample_from(lambda spec: population[spec.config.number]),
                }
                search = None
                needs["CPU"] = max(needs.get("CPU", 0.0), float(ray.cluster_resources()["CPU"] // at_a_time))
            tuning.start()
            with tempfile.TemporaryDirectory(prefix="sp_ray_ml-tune-") as scratch:
                ray_tune.Tuner(
                    ray_tune.with_resources(trial, needs),
                    param_space=space,
                    tune_config=ray_tune.TuneConfig(
                        metric="score",
                        mode="max",
                        search_alg=search,
                        scheduler=scheduler(job.trainer, tuning.settings),
                        num_samples=1 if job.pbt else -1,
                        time_budget_s=tuning.seconds_left,
                        reuse_actors=True,
                        trial_name_creator=trial_name,
                        trial_dirname_creator=trial_name,
                    ),
                    run_config=ray_tune.RunConfig(
                        **_storage(job, scratch),
                        verbose=0,
                        callbacks=[Follower(tuning)],
                    ),
                ).fit()
            tuning.interrupt()


def _storage(job: TrialJob, scratch: str) -> dict[str, Any]:
    """Where Ray keeps what a population hands on, which is all that it keeps; of this start alone."""
    if job.url is None or not job.pbt:
        return {"name": "tune", "storage_path": scratch}
    return ray_storage(job.folder) | {"name": f"tune-{uuid.uuid4().hex}"}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Ray Tune takes its habits from the environment, and talks."""
    import logging

    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with variables(_QUIET):
            yield
    finally:
        logger.setLevel(level)
