"""What MLflow gets of a tuning: a run a trial, nested in one, and the pictures of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.train.tuning import Trial, TuneResult

__all__ = ["TrialTracking"]

_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class TrialTracking:
    """Logs trials as they go.

    Args:
        run: The run that they are nested in.
        history: Gives what a trial reported of its epochs.
    """

    def __init__(self, run: Run, history: Callable[[int], Sequence[Mapping[str, Any]]]) -> None:
        self._run, self._history = run, history
        self._logged = {int(key.rpartition("-")[2]) for key in run.finished_children}
        self._children: dict[int, Any] = {}

    def show(self, trial: Trial) -> None:
        """There is news of a trial."""
        if trial.status == "running":
            self._child(trial)
        elif trial.number not in self._logged:
            self._finish(trial)

    def _child(self, trial: Trial) -> Any:
        if trial.number not in self._children:
            child = self._run.child(f"trial-{trial.number:04d}", f"trial {trial.number}")
            child.log_params(trial.params)
            self._children[trial.number] = child
        return self._children[trial.number]

    def _finish(self, trial: Trial) -> None:
        child = self._child(trial)
        if trial.status != "interrupted":  # it goes on one day
            self._logged.add(trial.number)
            child.log_history(self._history(trial.number))
        child.log_metrics({**trial.metrics, "seconds": trial.seconds})
        child.finish(
            _STATUS[trial.status], {"trial": trial.status, **({"error": trial.error} if trial.error else {})}
        )

    def best(self, result: TuneResult, prefix: str = "") -> None:
        """The tuning is over: the best trial's metrics are the run's, with this before their names."""
        self._run.log_metrics({f"{prefix}{name}": value for name, value in result.metrics.items()})
        self._run.log_params({"best": dict(result.params)})
        self._run.log_tags({"best_trial": result.best.number})
        data = {
            "metric": result.metric,
            "mode": result.mode,
            "trials": [
                {
                    "number": trial.number,
                    "params": {name: _drawn(value) for name, value in trial.params.items()},
                    "value": trial.value,
                    "status": trial.status,
                }
                for trial in result.trials
            ],
        }
        self._run.log_plot("trials", data, "plots/trials.png", "Trials")
        if sum(trial.value is not None for trial in result.trials) > 1:
            self._run.log_plot("parallel", data, "plots/parallel.png", "Settings of the trials")


def _drawn(value: Any) -> Any:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)
