"""Ray Train's workers as we ask for them, hear them while they work, and tell why one of them failed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sp_ray_ml._variables import variables
from sp_ray_ml.errors import SpRayError, TrainingError

if TYPE_CHECKING:
    import ray.train

    from sp_ray_ml.train._ray_place import Told
    from sp_ray_ml.train.context import Backend, Metrics
    from sp_ray_ml.train.settings import Scaling

__all__ = ["Follow", "cause_of", "fit", "ray_trainer", "scaling_config"]

_ASKED_EVERY_S = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
"""How often Ray Train asks the workers, every two seconds unless this says otherwise. A worker's next report waits until
the last one was asked for: boosting's rounds are faster than that."""
_WATCH = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Whether Ray Train starts a process that asks Ray which nodes are about to be taken away."""


def scaling_config(scaling: Scaling) -> ray.train.ScalingConfig:
    """The workers as Ray Train wants them described."""
    import ray.train

    return ray.train.ScalingConfig(
        num_workers=scaling.elastic or scaling.workers,
        use_gpu=scaling.gpus_per_worker > 0,
        accelerator_type=scaling.gpu_type,
        resources_per_worker={"CPU": scaling.cpus_per_worker}
        | ({"GPU": scaling.gpus_per_worker} if scaling.gpus_per_worker else {})
        | ({"memory": scaling.memory_per_worker} if scaling.memory_per_worker else {}),
    )


def ray_trainer(backend: Backend) -> Any:
    """Ray Train's own trainer for what connects the workers."""
    if backend == "xgboost":
        import ray.train.xgboost

        return ray.train.xgboost.XGBoostTrainer
    if backend == "tensorflow":
        import ray.train.tensorflow

        return ray.train.tensorflow.TensorflowTrainer
    import ray.train.torch

    return ray.train.torch.TorchTrainer


def fit(trainer: Any) -> ray.train.Result:
    """Train; the workers' reports are taken twice a second, unless the user's environment says how often."""
    chosen = {_ASKED_EVERY_S: "0.5"} | ({_WATCH: "0"} if _on_one_node() else {})
    with variables({name: os.environ.get(name, value) for name, value in chosen.items()}):
        return trainer.fit()


def _on_one_node() -> bool:
    """Whether all of Ray is this machine, whose end is also that of whoever would watch for it."""
    import ray

    return not os.environ.get("RAY_ADDRESS") and len(ray.nodes()) == 1


class Follow:
    """Hands on what rank 0 tells, while the driver waits in `fit`."""

    def __init__(self, told: Told, on_report: Callable[[Metrics], None]) -> None:
        import threading

        self._told, self._on_report = told, on_report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sp_ray_ml-follow", daemon=True)

    def __enter__(self) -> Follow:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._drain()

    def _run(self) -> None:
        while not self._stop.wait(0.3):
            self._drain()

    def _drain(self) -> None:
        for line in self._told.take():
            self._on_report(json.loads(line))


def cause_of(error: BaseException) -> SpRayError:
    """The error of the worker that failed, of what Ray Train raised."""
    failures = getattr(error, "worker_failures", None) or {}
    causes = [getattr(failure, "cause", failure) for failure in failures.values()]
    # The others mostly complain that the one that failed is gone.
    for inner in sorted(causes, key=lambda cause: not isinstance(cause, SpRayError)):
        if isinstance(inner, SpRayError):
            return inner
        return TrainingError(f"a worker failed: {type(inner).__name__}: {str(inner).splitlines()[-1:] or ''}")
    text = [line for line in str(error).splitlines() if line.strip()]
    return TrainingError(f"a worker failed: {text[-1] if text else type(error).__name__}")
