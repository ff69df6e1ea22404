"""What trainers share that also run training loops of the user's own. Importing it imports no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pydantic

from sp_ray_ml.config import Custom, Family, located
from sp_ray_ml.errors import CheckpointError, ConfigError
from sp_ray_ml.train.table import OnEpoch, TableTrainer, TrainResult

if TYPE_CHECKING:
    from sp_ray_ml.train.context import Backend

__all__ = ["LoopTrainer", "LoopTraining"]

FunctionField = Annotated[Custom, Family("train_loop", {}, callables=True)]


@dataclass(frozen=True)
class LoopTraining(TrainResult):
    """What a training loop of the user's own has reported.

    Attributes:
        metrics: Those last reported.
        history: All that were reported since this start.
        checkpoint_path: The last checkpoint, of a loop with a `context` the best one; None if none was reported.
    """

    checkpoint_path: Path | None = None

    @property
    def predictor_path(self) -> Path:
        """The folder of the checkpoint; a sealed predictor only if the loop has sealed one.

        Raises:
            CheckpointError: The loop reported no checkpoint.
        """
        if self.checkpoint_path is None:
            raise CheckpointError("the train_loop reported no checkpoint", where="train.train_loop")
        return self.checkpoint_path


class LoopTrainer(TableTrainer):
    """Base of the trainers that learn a label by themselves, or run a training loop of the user's own."""

    label: str = ""
    """The column to predict. Needed, unless a `train_loop` does without."""
    train_loop: FunctionField | None = None
    """A training loop of your own, by import path or as the function. With a parameter named `context` it is given a
    `TrainContext`; without, it is one for Ray Train (`ray.train.report`, `get_dataset_shard("train")`, …)."""
    train_loop_config: dict[str, Any] | None = None
    """What a `train_loop` for Ray Train is called with."""

    backend: ClassVar[Backend]
    """What connects the workers."""

    @pydantic.model_validator(mode="after")
    def _loop_fits(self) -> LoopTrainer:
        if self.train_loop is None and not self.label:
            raise located([(("label",), "required")])
        if self.train_loop is None and self.train_loop_config is not None:
            raise located([(("train_loop_config",), "needs a train_loop")])
        return self

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        seed: int = 0,
        folder: str | Path | None = None,
        on_epoch: OnEpoch | None = None,
        start_from: Any = None,
        about: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """See `TableTrainer.fit`. With a `train_loop`, the result is a `LoopTraining` with what the loop reported."""
        if self.train_loop is None:
            return super().fit(
                train,
                validation,
                seed=seed,
                folder=folder,
                on_epoch=on_epoch,
                start_from=start_from,
                about=about,
            )
        from sp_ray_ml.train._own_loop import fit

        if start_from is not None:
            raise ConfigError("a train_loop begins by itself", where="start_from")
        return fit(self, train, validation, seed=seed, folder=folder, on_epoch=on_epoch)
