"""When trials are compared, and which of them are stopped then: Ray Tune's schedulers, and the epochs they look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.train._tune_pbt import pbt_scheduler

if TYPE_CHECKING:
    from sp_ray_ml.train.trainer import Trainer
    from sp_ray_ml.train.tuning import Tune

__all__ = ["milestones", "scheduler"]

_REDUCTION = 3
_LOOKS = 20
_NEVER_S = 10**9


def milestones(trainer: Trainer, settings: Tune) -> frozenset[int]:
    """The epochs at which the scheduler compares. The last is none of them: who gets there is to be kept."""
    if settings.scheduler not in {"asha", "median"}:
        return frozenset()
    epochs = _most_epochs(trainer, settings)
    if settings.scheduler == "median":
        return frozenset(max(1, epochs * step // _LOOKS) for step in range(1, _LOOKS))
    rungs, rung = [], _first_rung(epochs)
    while rung < epochs:
        rungs.append(rung)
        rung *= _REDUCTION
    return frozenset(rungs)


def scheduler(trainer: Trainer, settings: Tune) -> Any:
    """Ray Tune's scheduler for what the settings name."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    if settings.scheduler == "none":
        return FIFOScheduler()
    if settings.scheduler == "pbt":
        return pbt_scheduler(settings)
    epochs = _most_epochs(trainer, settings)
    if settings.scheduler == "asha":
        return ASHAScheduler(
            time_attr="epoch",
            max_t=epochs + 1,
            grace_period=_first_rung(epochs),
            reduction_factor=_REDUCTION,
        )
    return MedianStoppingRule(
        time_attr="epoch",
        grace_period=max(1, epochs // 10),
        min_samples_required=3,
        min_time_slice=_NEVER_S,  # a trial that is paused would have to start anew
    )


def _most_epochs(trainer: Trainer, settings: Tune) -> int:
    name = trainer.epochs_setting
    assert name is not None
    domain = settings.space.get(name)
    values = [getattr(trainer, name)] if domain is None else domain.extremes
    return int(max(values))


def _first_rung(epochs: int) -> int:
    return max(1, epochs // _REDUCTION**3)
