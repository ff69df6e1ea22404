"""A training loop in the backend that its scaling names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_ray_ml.train._checkpoints import Checkpoints, LoopResult
from sp_ray_ml.train._local_context import LocalContext
from sp_ray_ml.train._ray_loop import run_on_ray
from sp_ray_ml.train._resources import check_resources

if TYPE_CHECKING:
    from sp_ray_ml.train.context import Backend, Metrics, TrainLoop
    from sp_ray_ml.train.settings import Scaling

__all__ = ["run_loop"]


def run_loop(
    loop: TrainLoop,
    job: Any,
    scaling: Scaling,
    folder: Path,
    on_report: Callable[[Metrics], None],
    *,
    backend: Backend = "torch",
) -> LoopResult:
    """Run a training loop in the backend that `scaling` names, going on from what an earlier start left.

    Args:
        loop: A function at the top level of a module.
        job: What it works on; travels to the workers by pickle within this user's own processes.
        scaling: How many workers of which size; 0 is this process.
        folder: Outlives a crash; the same folder goes on.
        on_report: Called here with the metrics of each epoch.
        backend: What the workers are connected by.

    Raises:
        ResourceError: More is asked for than there is.
        TrainingError: A worker failed.
    """
    check_resources(scaling)
    if scaling.workers == 0:
        with LocalContext(folder, on_report) as context:
            loop(context, job)
        return Checkpoints(folder).result()
    return run_on_ray(loop, job, scaling, folder, on_report, backend)
