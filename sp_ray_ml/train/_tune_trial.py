"""One trial, in the process that Ray Tune gives it: a training that reports how it stands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.errors import SpRayError, TrainingError
from sp_ray_ml.metrics.supervised import larger_is_better
from sp_ray_ml.train._tune_pbt import evolve
from sp_ray_ml.train._tune_place import Keeper, TrialPlace, trial_place
from sp_ray_ml.train._tune_store import SCORES
from sp_ray_ml.train.tuning import Trial, with_settings

if TYPE_CHECKING:
    from sp_ray_ml.train.table import TrainResult
    from sp_ray_ml.train.trainer import Trainer

__all__ = ["Reporter", "TrialJob", "chosen_metric", "number_of", "run_trial", "trial_name"]

_EVERY_S = 2.0


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a tuning share. It travels once to each machine.

    Attributes:
        trainer: With the settings that are not tuned.
        train: What `fit` takes.
        validation: What `fit` takes.
        seed: Of every training.
        folder: The tuning's.
        url: Where that is kept for nodes that do not see it; None where all do.
        metric: What counts; None for the trainer's own.
        mode: Whether it should be small or large; None for as it is meant.
        milestones: The epochs at which the scheduler is told how a trial stands.
        live: Whether it is told of others on the way, too, for the table.
        pbt: Whether the trials are a population.
        options: More for `fit`.
    """

    trainer: Trainer
    train: Any
    validation: Any
    seed: int
    folder: Path
    url: str | None = None
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    milestones: frozenset[int] = frozenset()
    live: bool = True
    pbt: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def score(self, metrics: Mapping[str, float]) -> float:
        """How good a training is by what it gave; larger is better."""
        metric = chosen_metric(self.trainer, self.metric, metrics)
        return sign_of(metric, self.mode) * float(metrics[metric])


_jobs: dict[str, TrialJob] = {}
"""What this process has opened: the next trial in it finds its data mapped already."""


def _job(reference: Any) -> TrialJob:
    import ray

    key = reference.hex()
    if key not in _jobs:
        _jobs.clear()
        _jobs[key] = ray.get(reference)
    return _jobs[key]


def trial_name(trial: Any) -> str:
    """What Ray Tune calls a trial."""
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"


def number_of(name: str) -> int:
    """The number in a trial's name."""
    return int(name.split("-")[1])


def run_trial(config: Mapping[str, Any], reference: Any, path: Iterable[str]) -> None:
    """Train with the values of `config["params"]`, and report to Ray Tune."""
    from ray import tune

    sys.path.extend(part for part in path if part not in sys.path)
    job = _job(reference)
    # Not by the config, which a population's trial takes over from another one.
    number, params = number_of(str(tune.get_context().get_trial_name())), dict(config["params"])
    try:
        with trial_place(job.folder, job.url, number) as place:
            # A population's parts are kept, and checkpoints of workers are sent by themselves.
            sends = place.url is not None and not job.pbt and not job.trainer.scaling.workers
            keep = Keeper(place, params) if sends else None
            trial = _run(job, Trial(number, params), place, Reporter(job, tune.report, keep))
    except SpRayError as error:  # there is no place to leave it at
        tune.report({"epoch": 1, "failed": _told(error)})
        return
    score = job.score(trial.metrics) if trial.status == "finished" and not job.pbt else None
    tune.report({"epoch": max(trial.epoch, 1), **_scored(score)})


def _run(job: TrialJob, trial: Trial, place: TrialPlace, reporter: Reporter) -> Trial:
    """Train, and leave how it ended at its place."""
    began = time.monotonic()
    history: list[dict[str, Any]] = []
    plots: Mapping[str, Any] = {}
    try:
        result = (
            evolve(job, trial.params, place, reporter, fit_trial)
            if job.pbt
            else fit_trial(job, trial.params, place.folder, reporter)
        )
        metric = chosen_metric(job.trainer, job.metric, result.metrics)
        history, plots = result.history, getattr(result, "plots", {})
        trial = replace(trial, status="finished", metrics=result.metrics, value=float(result.metrics[metric]))
    except Exception as error:  # noqa: BLE001 - whatever a trial fails of, the others go on
        trial = replace(trial, status="failed", metrics=reporter.metrics, error=_told(error))
    # A training that was finished before, and only not sealed, reports no epoch again.
    epoch = int(history[-1].get("epoch", len(history))) if history else reporter.epoch
    trial = replace(trial, epoch=epoch, seconds=time.monotonic() - began)
    place.end(trial, history, plots)
    return trial


def _scored(score: float | None) -> dict[str, float]:
    # Schedulers look whether the entry is there, and compare it if it is.
    return {} if score is None else {"score": score}


def fit_trial(
    job: TrialJob, params: Mapping[str, Any], folder: Path, reporter: Reporter, **more: Any
) -> TrainResult:
    """Train, and keep what the model says of the validation rows."""
    import numpy as np

    trainer: Any = _of_one_trial(with_settings(job.trainer, params))
    result: TrainResult = trainer.fit(
        job.train, job.validation, seed=job.seed, folder=folder, on_epoch=reporter, **job.options, **more
    )
    if result.validation_scores is not None:
        np.save((folder.parent if job.pbt else folder) / SCORES, result.validation_scores)
    return result


def _of_one_trial(trainer: Trainer) -> Trainer:
    """As a trainer trains in a trial.

    With `workers: 0` Ray gives the trial's process its GPUs, and the training takes what it sees. What is sealed is
    what was measured: nothing is refitted on the rows that the trials are compared on.
    """
    scaling = trainer.scaling
    if not scaling.workers and scaling.gpus_per_worker:
        plain = scaling.model_copy(update={"gpus_per_worker": 0.0, "gpu_type": None})
        trainer = trainer.model_copy(update={"scaling": plain})
    return trainer.model_copy(update={"refit": False}) if getattr(trainer, "refit", False) else trainer


def _told(error: Exception) -> str:
    if isinstance(error, SpRayError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def chosen_metric(trainer: Trainer, wanted: str | None, metrics: Mapping[str, float]) -> str:
    """The metric that counts.

    Raises:
        TrainingError: It is not among those that the training gave.
    """
    if wanted is None:
        wanted = next((name for name in trainer.main_metrics if name in metrics), None)
    if wanted is None or wanted not in metrics:
        raise TrainingError(
            f"the training gave no metric {wanted!r} (it gave: {', '.join(metrics)})",
            where="tune.metric",
            hint="Set tune.metric to one of them",
        )
    return wanted


def sign_of(metric: str, mode: Literal["min", "max"] | None) -> float:
    """What a metric is multiplied by to be larger for the better."""
    if mode is None:
        mode = "max" if larger_is_better(metric) else "min"
    return 1.0 if mode == "max" else -1.0


class Reporter:
    """Hears of the epochs of a training, whose checkpoints are then written, and tells Ray Tune of some.

    Args:
        job: What all trials share.
        report: Ray Tune's.
        keep: Called after each epoch; None for nothing.
    """

    def __init__(self, job: TrialJob, report: Any, keep: Callable[[], None] | None) -> None:
        self._job, self._report, self._keep = job, report, keep
        self._told = time.monotonic()
        self.epoch = self.before = 0
        self.metrics: dict[str, float] = {}

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self.epoch = self.before + int(metrics.get("epoch", self.epoch - self.before + 1))
        self.metrics = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and name not in {"epoch", "epochs"}
        }
        if self._keep is not None:
            self._keep()  # before Ray may stop the trial
        due = self._job.live and time.monotonic() - self._told > _EVERY_S
        if self.epoch not in self._job.milestones and not due:
            return
        self._told = time.monotonic()
        self._report({"epoch": self.epoch, "metrics": self.metrics, **_scored(self._standing())})

    def _standing(self) -> float | None:
        """How good the training is so far, by the epoch's metric that is nearest to the one that counts."""
        held_out = [name for name in self.metrics if name.startswith("validation/")]
        wanted = [self._job.metric] if self._job.metric else list(self._job.trainer.main_metrics)
        for metric in wanted:
            for name in [*held_out, *self.metrics]:
                if _bare(name) == _bare(metric):
                    return sign_of(metric, self._job.mode) * self.metrics[name]
        # An epoch often knows less than the end: the loss then stands for it.
        for name in [*reversed(held_out), *(name for name in self.metrics if "loss" in name)]:
            return sign_of(name, None) * self.metrics[name]
        return None


def _bare(metric: str) -> str:
    """The frameworks' names of one metric made alike: `validation/mlogloss`, `log_loss`."""
    name = metric.rpartition("/")[2].replace("_", "").lower()
    return "logloss" if name == "mlogloss" else name
