"""What the loops of PyTorch and of Keras share: sizes before the first step, where training is, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.config import near_match
from sp_ray_ml.errors import CheckpointError, ConfigError, TrainingError
from sp_ray_ml.metrics.supervised import larger_is_better
from sp_ray_ml.train._checkpoints import read_state
from sp_ray_ml.train._table_arrays import Arrays
from sp_ray_ml.train._table_spec import Target
from sp_ray_ml.train.table_predictor import metrics_of

if TYPE_CHECKING:
    from sp_ray_ml.train.settings import EarlyStopping

__all__ = ["Progress", "batch_size_of", "broken", "label_scale"]


def batch_size_of(wanted: int | None, rows: int) -> int:
    """Rows of a batch: what is wanted, or a power of two near a fiftieth of the rows, from 32 to 1,024.

    Raises:
        ConfigError: There are not as many rows.
    """
    if wanted is None:
        return min(rows, max(32, min(1_024, 1 << round(math.log2(max(1, rows / 50))))))
    if wanted > rows:
        raise ConfigError(
            f"a batch of {wanted:,} rows is larger than the data: there are {rows:,}",
            where="train.batch_size",
            hint=f"Set it to {rows:,} at most, or leave it out",
        )
    return wanted


def label_scale(standardize: bool, target: Target, train: Arrays) -> tuple[float, float]:
    """Mean and standard deviation that a regression's label is learned in; 0 and 1 for all else."""
    if target.task != "regression" or not standardize:
        return 0.0, 1.0
    return float(train.y.mean(dtype=np.float64)), float(train.y.std(dtype=np.float64)) or 1.0


@dataclass
class Progress:
    """Where training is, as a checkpoint keeps it beside the tensors.

    Attributes:
        epoch: Epochs that are done.
        step: Steps of the next one that are done.
        loss: Sum of their losses.
        seconds: How long they took, before a restart too.
        history: One entry an epoch.
        best: The best value of the watched metric, larger is better.
        best_epoch: When it was.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None

    @classmethod
    def load(cls, folder: Path) -> Progress:
        """What a checkpoint has.

        Raises:
            CheckpointError: It is that of another loop, or damaged.
        """
        try:
            return cls(**read_state(folder))
        except TypeError as error:
            raise CheckpointError(f"cannot be gone on from: {error}", where=str(folder)) from None

    def end_epoch(
        self, metrics: Mapping[str, float], rate: float, target: Target, stopping: EarlyStopping | None
    ) -> bool:
        """Enter the next epoch into the history.

        Args:
            metrics: Of the epoch; those of the validation rows begin with `validation/`.
            rate: Its last learning rate.
            target: What is predicted: says which metric counts where `stopping` does not.
            stopping: Names the metric that counts.

        Returns:
            Whether it is the best so far; never without validation rows.

        Raises:
            ConfigError: There is no such metric.
        """
        self.epoch += 1
        self.history.append({"epoch": self.epoch, **metrics, "learning_rate": rate, "seconds": self.seconds})
        self.step, self.loss, self.seconds = 0, 0.0, 0.0
        known = [name.partition("/")[2] for name in metrics if name.startswith("validation/")]
        if not known:
            return False
        name = (stopping and stopping.metric) or metrics_of(target).main
        if name not in known:
            raise ConfigError(
                f"unknown metric {name!r}{near_match(name, known)} (known: {', '.join(known)})",
                where="train.early_stopping.metric",
            )
        value = metrics[f"validation/{name}"]
        value = value if larger_is_better(name) else -value
        if self.best is not None and value <= self.best:
            return False
        self.best, self.best_epoch = value, self.epoch
        return True

    def stopped(self, stopping: EarlyStopping | None) -> bool:
        """Whether it has not got better for too long."""
        if stopping is None or self.best_epoch is None:
            return False
        return self.epoch - self.best_epoch >= stopping.patience


def broken(
    what: str, *, step: int, epoch: int, batch: str, last_checkpoint: str | None, rate: float
) -> TrainingError:
    """The error of a training that cannot go on.

    Args:
        what: What is wrong.
        step: Of the whole training, from 1.
        epoch: From 1.
        batch: The fingerprint of the step's rows.
        last_checkpoint: The last good one.
        rate: The learning rate that was set.
    """
    return TrainingError(
        f"{what} in step {step} (epoch {epoch}, batch {batch}); "
        + (
            f"the last good checkpoint is {last_checkpoint}"
            if last_checkpoint
            else "there is no checkpoint before it"
        ),
        where="train",
        hint=f"Lower train.optimizer.learning_rate (it is {rate:g}), set train.clip: 1, and look for values that are "
        "far too large",
    )
