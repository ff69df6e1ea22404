"""`RLlibTrainer`: learns to act in a Gymnasium environment. Importing it imports no heavy library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic

from sp_ray_ml._import_path import IMPORT_PATH, import_object
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train.table import TrainResult, new_training_folder
from sp_ray_ml.train.trainer import Trainer

if TYPE_CHECKING:
    from sp_ray_ml.tracking import Run
    from sp_ray_ml.train.tuning import OnTrial, Tune, TuneResult

__all__ = ["RLlibTrainer"]

_OWN = {
    "lr": "learning_rate",
    "gamma": "gamma",
    "train_batch_size": "batch_size",
    "train_batch_size_per_learner": "batch_size",
}


class RLlibTrainer(Trainer):
    """Learns a policy with RLlib, PPO or DQN.

    The environment has vectors of numbers as observations; its actions are choices, or for PPO vectors of numbers,
    too. Its workers (`scaling.workers`) are what plays; without any, this process plays itself.
    """

    environment: Any
    """A Gymnasium environment's name (`CartPole-v1`), or import path or function that makes one."""
    environment_settings: dict[str, Any] = pydantic.Field(default={})
    """Keyword arguments for it."""
    algorithm: Literal["ppo", "dqn"] = "ppo"
    """Proximal policy optimization (Schulman et al. 2017), or deep Q-learning (Mnih et al. 2015)."""
    iterations: int = pydantic.Field(default=100, ge=1)
    """Rounds of playing and learning, at most."""
    stop_at: float | None = None
    """The mean return of the last 20 episodes or more at which training is over."""
    learning_rate: float = pydantic.Field(default=3e-4, gt=0)
    """Of the optimizer."""
    gamma: float = pydantic.Field(default=0.99, gt=0, le=1)
    """What a reward counts for one step later."""
    batch_size: int | None = pydantic.Field(default=None, ge=1)
    """Steps that are learned from at a time; without, 4,000 for PPO and 64 for DQN."""
    hidden: list[int] = pydantic.Field(default=[64, 64], min_length=1)
    """Widths of the network's layers."""
    params: dict[str, Any] = pydantic.Field(default={})
    """More of the algorithm's own `training(…)` settings: `entropy_coeff`, `target_network_update_freq`, …."""

    main_metrics: ClassVar[tuple[str, ...]] = ("return",)
    metric_names: ClassVar[tuple[str, ...]] = ("return", "episode_length")
    tuned_on_validation: ClassVar[bool] = False

    @pydantic.field_validator("environment")
    @classmethod
    def _names_one(cls, environment: Any) -> Any:
        if not callable(environment) and not (isinstance(environment, str) and environment.strip()):
            raise ValueError("expected a Gymnasium environment's name, an import path or a function")
        return environment

    @pydantic.field_validator("params")
    @classmethod
    def _has_no_setting_of_its_own(cls, params: dict[str, Any]) -> dict[str, Any]:
        if taken := [name for name in params if name in _OWN]:
            raise ValueError(f"{taken[0]} is the setting `{_OWN[taken[0]]}`")
        return params

    def make_environment(self) -> Any:
        """One environment.

        Raises:
            ConfigError: There is none of that name, or it cannot be made.
        """
        from sp_ray_ml.optional import require

        gymnasium: Any = require("gymnasium", "reinforcement learning")
        try:
            if isinstance(self.environment, str) and not IMPORT_PATH.match(self.environment):
                return gymnasium.make(self.environment, **self.environment_settings)
            make = import_object(self.environment) if isinstance(self.environment, str) else self.environment
            made = make(**self.environment_settings)
        except ConfigError as error:
            raise ConfigError(error.message, where="train.environment", hint=error.hint) from None
        except Exception as error:
            raise ConfigError(
                f"the environment cannot be made: {type(error).__name__}: {error}", where="train.environment"
            ) from error
        if not isinstance(made, gymnasium.Env):
            raise ConfigError(
                f"made a {type(made).__name__}, which is no gymnasium.Env", where="train.environment"
            )
        return made

    def fit(
        self,
        train: None = None,
        validation: None = None,
        *,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: Callable[[Mapping[str, float]], None] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """Play and learn, keep the best policy and seal it.

        Args:
            train: Nothing: the environment gives what is learned from.
            validation: Nothing.
            seed: Of networks, exploration and environments.
            folder: Keeps the training; the same folder goes on where it was. Without, a new one under `runs/`.
            on_epoch: Called with the metrics of each iteration: `epoch`, `episodes`, `return`, `episode_length`, `steps`.
            about: More for the predictor's manifest.

        Raises:
            ConfigError: The environment cannot be made, or is of a kind that is not supported.
            ResourceError: More is asked for than the machine or cluster has.
            MissingDependencyError: RLlib or Gymnasium is not installed.
        """
        from sp_ray_ml.train._resources import check_resources
        from sp_ray_ml.train._rllib_loop import fit

        if train is not None or validation is not None:
            raise ConfigError("learns from its environment, not from rows", where="train")
        check_resources(self.scaling)
        place = new_training_folder(type(self).__name__) if folder is None else Path(folder)
        return fit(self, seed=seed, folder=place, on_epoch=on_epoch or _ignore, about=about or {})

    def tune(
        self,
        train: None = None,
        validation: None = None,
        *,
        tune: Tune,
        seed: int = 0,
        folder: str | Path | None = None,
        on_trial: OnTrial | None = None,
        run: Run | None = None,
        **options: Any,
    ) -> TuneResult:
        """As `Trainer.tune`; there are no rows to give."""
        return super().tune(
            train, validation, tune=tune, seed=seed, folder=folder, on_trial=on_trial, run=run, **options
        )


def _ignore(metrics: Mapping[str, float]) -> None:
    """Nobody asked to hear of the iterations."""
