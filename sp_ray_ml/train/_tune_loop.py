"""How a tuning runs: trials on Ray Tune, in processes that are used again, the finished ones kept in its folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.config import fingerprint
from sp_ray_ml.errors import ConfigError, TrainingError
from sp_ray_ml.metrics.supervised import larger_is_better
from sp_ray_ml.storage import Lock
from sp_ray_ml.train._resources import available, check_tuning, trial_resources
from sp_ray_ml.train._tune_pbt import pbt_scheduler
from sp_ray_ml.train._tune_search import Search, search_of
from sp_ray_ml.train._tune_store import TrialStore, trial_folder
from sp_ray_ml.train._tune_tracking import TrialTracking
from sp_ray_ml.train._tune_trial import TrialJob, chosen_metric, run_trial, sign_of, trial_name
from sp_ray_ml.train.table import new_training_folder
from sp_ray_ml.train.tuning import OnTrial, Trial, Tune, TuneResult, check_space, with_settings

if TYPE_CHECKING:
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.train.trainer import Trainer

__all__ = ["tune"]

_REDUCTION = 3
_LOOKS = 20
_NEVER_S = 10**9
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
        train, validation = _movable(train, "train"), _movable(validation, "validation")
        key = fingerprint(
            trainer,
            settings.model_copy(update={"trials": None, "max_concurrent": None, "time_budget": None}),
            seed,
            [_likeness(train), _likeness(validation), {name: _likeness(v) for name, v in options.items()}],
        )
        store = TrialStore(place, key)
        tracking = None if run is None else TrialTracking(run, store.history)
        tuning = _Tuning(trainer, settings, search, store, _both(on_trial, tracking))
        tuning.recall()
        if tuning.left:
            job = TrialJob(
                trainer,
                train,
                validation,
                seed,
                place,
                settings.metric,
                settings.mode,
                _milestones(trainer, settings),
                settings.scheduler in {"none", "asha"},
                settings.scheduler == "pbt",
                options,
            )
            _run_on_ray(tuning, job, at_a_time)
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


# --- what travels -----------------------------------------------------------------------------------------------


def _movable(rows: Any, name: str) -> Any:
    """What can travel to the trials once, and be opened there: a table, or the path of files."""
    from sp_ray_ml.data.source import Source, as_source

    if isinstance(rows, str | Path):
        return str(Path(rows).absolute()) if Path(rows).exists() else rows
    import pyarrow as pa

    if rows is None or isinstance(rows, pa.Table):
        return rows
    known = isinstance(rows, Source) or type(rows).__module__.split(".")[0] in {"ray", "pandas", "pyarrow"}
    # What is no table (a graph) is the trainer's business.
    return as_source(rows, name).to_arrow() if known else rows


def _likeness(rows: Any) -> Any:
    """Tells data from other data, at the price of a look at both ends."""
    import pyarrow as pa

    if not isinstance(rows, pa.Table):
        return rows if rows is None or isinstance(rows, str | int | float | bool) else type(rows).__qualname__
    digest = hashlib.sha256()
    for part in (rows.slice(0, 1_000), rows.slice(max(0, len(rows) - 1_000))):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, part.schema) as stream:
            stream.write_table(part.combine_chunks())
        digest.update(sink.getvalue())
    return {"rows": len(rows), "schema": str(rows.schema.remove_metadata()), "ends": digest.hexdigest()}


# --- schedulers -------------------------------------------------------------------------------------------------


def _most_epochs(trainer: Trainer, settings: Tune) -> int:
    name = trainer.epochs_setting
    assert name is not None
    domain = settings.space.get(name)
    values = [getattr(trainer, name)] if domain is None else domain.extremes
    return int(max(values))


def _first_rung(epochs: int) -> int:
    return max(1, epochs // _REDUCTION**3)


def _milestones(trainer: Trainer, settings: Tune) -> frozenset[int]:
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


def _scheduler(trainer: Trainer, settings: Tune) -> Any:
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


# --- the trials -------------------------------------------------------------------------------------------------


class _Tuning:
    """The trials: those that are over, those that were begun before, those at work."""

    def __init__(
        self, trainer: Trainer, settings: Tune, search: Search, store: TrialStore, on_trial: OnTrial
    ) -> None:
        self.trainer, self.settings, self.search, self.store = trainer, settings, search, store
        self._on_trial = on_trial
        self.trials: dict[int, Trial] = {}
        self._begun: dict[int, dict[str, Any]] = {}
        self._next = 1
        self._best: Trial | None = None
        self._since = time.monotonic()

    def recall(self) -> None:
        """What an earlier process has left."""
        for number, params in self.store.begun().items():
            self._next = max(self._next, number + 1)
            known = self.store.result(number)
            if known is None:
                self._begun[number] = params
            else:
                self._over(known)

    @property
    def left(self) -> int:
        """How many trials are still to be run; none when the time is up."""
        if self.seconds_left is not None and self.seconds_left <= 0:
            return 0
        return max(0, self.settings.count - len(self.trials))

    @property
    def seconds_left(self) -> float | None:
        """Of the time budget, over all processes; None where there is no end."""
        budget = self.settings.time_budget
        if budget is None:
            return None
        return budget.total_seconds() - self.store.seconds - (time.monotonic() - self._since)

    def start(self) -> None:
        """The time counts from now on: Ray's start does not."""
        self._since = time.monotonic()

    def next(self) -> tuple[int, dict[str, Any]] | None:
        """The number and the values of the next trial; None when there is no other."""
        if len(self.trials) >= self.settings.count:
            return None
        if self._begun:
            number = min(self._begun)
            params = self._begun.pop(number)
        else:
            number, self._next = self._next, self._next + 1
            params = self.search.propose(number)
            self.store.begin(number, params)
        self._heard(Trial(number, params))
        return number, params

    @property
    def running(self) -> int:
        """How many are at work."""
        return sum(trial.status == "running" for trial in self.trials.values())

    def progress(self, number: int, report: Mapping[str, Any]) -> None:
        """A trial says how it stands."""
        trial = self.trials[number]
        if "metrics" in report:
            config = report.get("config", {})
            self._heard(
                replace(
                    trial,
                    params=config.get("params", trial.params),
                    epoch=int(report["epoch"]),
                    metrics=report["metrics"],
                    seconds=float(report.get("time_total_s", 0.0)),
                )
            )

    def end(self, number: int, report: Mapping[str, Any], error: str | None = None) -> None:
        """A trial is over."""
        from sp_ray_ml.train._tune_store import write_result

        self.store.spend(time.monotonic() - self._since)
        known = self.store.result(number)
        if known is None:
            trial = self.trials[number]
            if error is not None:
                known = replace(trial, status="failed", error=error)
            elif self.seconds_left is not None and self.seconds_left <= 0:
                return  # it is not over for a tuning that gets more time: see `interrupt`
            else:
                known = replace(trial, status="stopped")
            write_result(trial_folder(self.store.folder, number), known)
        self._over(known, report.get("score"))

    def interrupt(self) -> None:
        """No trial is at work any longer: those that seem to be were cut off."""
        self.store.spend(time.monotonic() - self._since)
        for trial in list(self.trials.values()):
            if trial.status == "running":
                self._heard(replace(trial, status="interrupted"))

    def _over(self, trial: Trial, score: float | None = None) -> None:
        if trial.status == "finished":
            score = self._score(trial)
        self.search.tell(trial, score)
        loser: Trial | None = trial
        better = score is not None and (self._best is None or score > self._score(self._best))
        if better and trial.status == "finished":
            self._best, loser = trial, self._best
        if loser is not None and self.settings.scheduler != "pbt":  # others may go on from it
            self.store.discard_model(loser.number)
        self._heard(trial)

    def _heard(self, trial: Trial) -> None:
        self.trials[trial.number] = trial
        self._on_trial(trial)

    def _metric(self, trial: Trial) -> str:
        return chosen_metric(self.trainer, self.settings.metric, trial.metrics)

    def _score(self, trial: Trial) -> float:
        assert trial.value is not None
        return sign_of(self._metric(trial), self.settings.mode) * trial.value

    def result(self) -> TuneResult:
        """The best model sealed, and how all went.

        Raises:
            TrainingError: No trial finished.
        """
        best = self._best
        trials = [self.trials[number] for number in sorted(self.trials)]
        if best is None:
            failed = [trial for trial in trials if trial.error]
            if failed:
                raise TrainingError(
                    f"all of {len(failed)} trials failed, the first of them: {failed[0].error}", where="tune"
                )
            raise TrainingError(
                "no trial was finished in time", where="tune.time_budget", hint="Allow for more time"
            )
        self.store.seal(best.number)
        for trial in trials:
            if trial.number != best.number and trial.status != "interrupted":
                self.store.discard_model(trial.number)
        metric = self._metric(best)
        mode: Literal["min", "max"] = self.settings.mode or ("max" if larger_is_better(metric) else "min")
        return TuneResult(
            metrics=best.metrics,
            history=self.store.history(best.number),
            path=self.store.folder,
            validation_scores=self.store.scores(best.number),
            plots=self.store.plots(best.number),
            metric=metric,
            mode=mode,
            trials=trials,
            best=best,
            trainer=with_settings(self.trainer, best.params),
        )


# --- on Ray -----------------------------------------------------------------------------------------------------


def _run_on_ray(tuning: _Tuning, job: TrialJob, at_a_time: int) -> None:
    with _quietly():
        import ray
        from ray import tune as ray_tune

        from sp_ray_ml.train._tune_ray import Follower, Proposals
        from sp_ray_ml.train.context import ray_running

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
                        scheduler=_scheduler(job.trainer, tuning.settings),
                        num_samples=1 if job.pbt else -1,
                        time_budget_s=tuning.seconds_left,
                        reuse_actors=True,
                        trial_name_creator=trial_name,
                        trial_dirname_creator=trial_name,
                    ),
                    run_config=ray_tune.RunConfig(
                        name="tune",
                        storage_path=scratch,
                        verbose=0,
                        callbacks=[Follower(tuning)],
                    ),
                ).fit()
            tuning.interrupt()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Ray Tune takes its habits from the environment, and talks."""
    import logging

    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
