"""The trials of a tuning: what is proposed next, what each has come to, and which is the best."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.errors import TrainingError
from sp_ray_ml.metrics.supervised import larger_is_better
from sp_ray_ml.train._tune_search import Search
from sp_ray_ml.train._tune_store import TrialStore, trial_folder, write_result
from sp_ray_ml.train._tune_trial import chosen_metric, sign_of
from sp_ray_ml.train.tuning import OnTrial, Trial, Tune, TuneResult, with_settings

if TYPE_CHECKING:
    from sp_ray_ml.train.trainer import Trainer

__all__ = ["Tuning"]


class Tuning:
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
            while (
                self._next in self.trials
            ):  # one may be missing before it: what is at a URL is not all that was begun
                self._next += 1
            number = self._next
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
        self.store.spend(time.monotonic() - self._since)
        known = self.store.result(number)
        if known is None:
            trial = self.trials[number]
            error = error or report.get("failed")
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
