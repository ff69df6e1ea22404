"""What all trainers share. Importing it imports no heavy library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sp_ray_ml.config import Family, Settings
from sp_ray_ml.train.settings import Scaling

if TYPE_CHECKING:
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.train.tuning import OnTrial, Tune, TuneResult

__all__ = ["Trainer", "TrainerField"]


class Trainer(Settings):
    """Base of the trainers: settings with a `fit`."""

    scaling: Scaling = Scaling()
    """Where training runs."""

    main_metrics: ClassVar[tuple[str, ...]] = ()
    """What a training is judged by unless another metric is named: the first of these that it gives."""
    metric_names: ClassVar[tuple[str, ...]] = ()
    """The metrics that a training may give; none where they are not known beforehand."""
    tuned_on_validation: ClassVar[bool] = True
    """Whether tuning needs validation rows."""

    @property
    def epochs_setting(self) -> str | None:
        """The setting that says how many epochs (rounds, iterations) there are at most; None where there is none."""
        fields = type(self).model_fields
        return next((name for name in ("epochs", "num_boost_round", "iterations") if name in fields), None)

    def tune(
        self,
        train: Any,
        validation: Any = None,
        *,
        tune: Tune,
        seed: int = 0,
        folder: str | Path | None = None,
        on_trial: OnTrial | None = None,
        run: Run | None = None,
        **options: Any,
    ) -> TuneResult:
        """Train with one set of values after the other, and seal the best model.

        Trials run on Ray Tune. Started again in the same folder, those that are finished stay so, and those that were
        begun go on from their last checkpoint.

        Args:
            train: As for `fit`. It travels once to each machine.
            validation: As for `fit`; the trials are compared on it.
            tune: What is tried, and how.
            seed: Of the search, and of each training.
            folder: Keeps the tuning; the same folder goes on. Without, a new one under `runs/`.
            on_trial: Called with a trial whenever there is news of it. Without, a table of the trials is printed.
            run: The run in MLflow that the trials are to be nested in; it gets the best one's metrics.
            options: More for `fit`.

        Raises:
            ConfigError: The space has a setting that the trainer has not, or values that it does not take; the
                folder holds a tuning of something else.
            ResourceError: The trials ask for more than the machine or the cluster has.
            TrainingError: No trial finished.
            MissingDependencyError: Optuna is asked for and not installed.
        """
        from sp_ray_ml.train._tune_loop import tune as run_tuning
        from sp_ray_ml.train._tune_table import TrialTable

        with TrialTable() as table:
            return run_tuning(
                self,
                train,
                validation,
                tune,
                seed=seed,
                folder=folder,
                on_trial=on_trial or table.show,
                run=run,
                options=options,
            )


TrainerField = Annotated[
    Trainer,
    Family(
        "trainer",
        {
            "pyg": "sp_ray_ml.train.pyg:PyGTrainer",
            "tensorflow": "sp_ray_ml.train.tensorflow:TensorFlowTrainer",
            "torch": "sp_ray_ml.train.torch:TorchTrainer",
            "xgboost": "sp_ray_ml.train.xgboost:XGBoostTrainer",
            "rllib": "sp_ray_ml.train.rllib:RLlibTrainer",
            "two_tower": "sp_ray_ml.train.two_tower:TwoTowerTrainer",
        },
        default="pyg",
    ),
]
