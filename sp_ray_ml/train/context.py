"""`TrainContext`: what a training loop may ask of where it runs: this process, or a worker of Ray Train.

A loop is `loop(context, job)`. It calls `context.report` once an epoch on every worker, with the files of a
checkpoint as bytes, taken at that moment: they reach the disk while the next epoch trains. It begins with
`context.resume()`. Both backends keep the last and the best checkpoint and go on from the last one when they are
started again in the same folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sp_ray_ml.errors import ConfigError

if TYPE_CHECKING:
    import tensorflow as tf
    import torch

    from sp_ray_ml.train._table_arrays import Arrays

__all__ = ["Backend", "CheckpointFiles", "Metrics", "TrainContext", "TrainLoop"]

Metrics = Mapping[str, float]
Backend = Literal["torch", "tensorflow", "xgboost"]
CheckpointFiles = Mapping[str, bytes]


class TrainContext(ABC):
    """Where a training loop runs.

    Attributes:
        rank: This worker's number, from 0.
        world_size: How many workers there are.
        restarts: How often the workers were started again in this training, because one had died.
    """

    rank: int
    world_size: int
    restarts: int = 0
    _rows: Callable[[str], Arrays | None] | None = None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where its tensors belong."""

    @abstractmethod
    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        """Move a model to the device, and wrap it so that gradients are averaged over the workers."""

    @abstractmethod
    def report(self, metrics: Metrics, files: Callable[[], CheckpointFiles], *, score: float) -> None:
        """End an epoch: called by every worker; the checkpoint of rank 0 is kept if it is the last or the best.

        Args:
            metrics: Numbers about the epoch, shown and tracked.
            files: Gives the checkpoint's files by name; called on rank 0 before this returns.
            score: What makes a checkpoint the best; larger is better.
        """

    @abstractmethod
    def log(self, metrics: Metrics) -> None:
        """Show and track numbers about an epoch that has no checkpoint of its own; what rank 0 says counts."""

    @abstractmethod
    def save(self, files: Callable[[], CheckpointFiles]) -> None:
        """Keep a checkpoint to go on from amid an epoch; called by every worker. It is never the best one.

        Args:
            files: Gives the checkpoint's files by name; called on rank 0 before this returns.
        """

    @abstractmethod
    def resume(self) -> Path | None:
        """The last checkpoint, where an earlier start left one."""

    @property
    @abstractmethod
    def last_checkpoint(self) -> str | None:
        """Where the last checkpoint that was kept lies, for messages."""

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """What connects the workers of a `TensorFlowTrainer`; of one alone, TensorFlow's default.

        A Keras model made within `context.strategy.scope()` is the same on all workers, and gradients that its
        optimizer applies within `context.strategy.run(step)` are added up over them.
        """
        from sp_ray_ml.train._keras import tf

        return tf.distribute.get_strategy()

    def rows(self, part: str = "train") -> Arrays | None:
        """All rows of a part, `train` or `validation`, encoded; None where there is no such part.

        Every worker has all of them, in memory that they share: take `context.shard(len(rows))`.

        Raises:
            ConfigError: The trainer has no `label`, so that it is not known what the rows should become.
        """
        if self._rows is None:
            raise ConfigError(
                "without a label it is not known what rows should become",
                where="train.label",
                hint="Name the column that is predicted",
            )
        return self._rows(part)

    def gather(self, value: Any) -> list[Any]:
        """What each worker passed, in the order of their ranks, on every worker; called by every worker."""
        return [value]

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the workers; called by every worker."""
        return value

    def average(self, value: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over the workers; called by every worker."""
        return value

    def shard(self, count: int) -> slice:
        """This worker's equal part of `count` rows; what does not divide is left to the last worker."""
        size = count // self.world_size
        return slice(self.rank * size, count if self.rank == self.world_size - 1 else (self.rank + 1) * size)


TrainLoop = Callable[[TrainContext, Any], None]
