"""What `TensorFlowTrainer` makes small: the built-in losses and those of a user's own, as one number a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.config import Custom
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train._keras import tf
from sp_ray_ml.train.torch import MAE, MSE, CrossEntropy, Huber, TableLoss

if TYPE_CHECKING:
    from sp_ray_ml.train._table_spec import Target
    from sp_ray_ml.train.tensorflow import TensorFlowTrainer

__all__ = ["Objective"]

_WHERE = "train.loss"


class Objective:
    """A loss, for rows of which each counts as much as its weight.

    Args:
        trainer: Its settings.
        target: What is predicted.
        weighted: Whether rows have weights.

    Attributes:
        a_row: Whether the loss gives a number for each row; otherwise one for the batch.
    """

    def __init__(self, trainer: TensorFlowTrainer, target: Target, *, weighted: bool) -> None:
        self.weighted, self.a_row = weighted, True
        self.regression = target.task == "regression"
        self.loss: TableLoss | Any = trainer.loss or (MSE() if self.regression else CrossEntropy())
        if isinstance(self.loss, Custom):
            arguments = self.loss.arguments
            self.own = self.loss.load()
            self.name = getattr(self.own, "__qualname__", type(self.own).__name__)
            if isinstance(self.own, type):
                self.own = self.own(**arguments)
            elif arguments:
                inner = self.own
                self.own = lambda y, outputs: inner(y, outputs, **arguments)
        elif isinstance(self.loss, CrossEntropy) == self.regression:
            kind = type(self.loss).__name__
            raise ConfigError(
                f"{kind} compares {'classes' if self.regression else 'numbers'}, the label is a {target.task}",
                where=_WHERE,
                hint=f"Use {'mse, mae or huber' if self.regression else 'cross_entropy'}, or set train.task",
            )

    def check(self, y: Any, outputs: Any) -> None:
        """Try a loss of the user's own on some rows.

        Raises:
            ConfigError: It fails on them, or gives neither one number nor one a row.
        """
        if not isinstance(self.loss, Custom):
            return
        try:
            found = tf.convert_to_tensor(self.own(y, outputs))
        except Exception as error:
            raise ConfigError(
                f"{self.name} fails on y {tuple(y.shape)} and outputs {tuple(outputs.shape)}: "
                f"{type(error).__name__}: {str(error).strip()}",
                where=_WHERE,
                hint="It is called as loss(y, outputs)",
            ) from error
        if not found.dtype.is_floating or tuple(found.shape) not in {(), (len(outputs),)}:
            raise ConfigError(
                f"{self.name} must give one number for each row, [{len(outputs)}], or one for the batch; it gives "
                f"{found.dtype.name} {tuple(found.shape)}",
                where=_WHERE,
                hint="Take the mean over all but the first dimension",
            )
        self.a_row = bool(found.shape.rank)
        if self.weighted and not self.a_row:
            raise ConfigError(
                f"{self.name} gives one number for the batch, so that rows cannot be weighted",
                where=_WHERE,
                hint="Give one for each row, or leave out train.weight and train.class_weights",
            )

    def __call__(self, y: Any, outputs: Any, weight: Any, total: Any, share: Any) -> Any:
        """This worker's part of a batch's loss.

        Args:
            y: float32 [rows, 1] or int64 [rows].
            outputs: float32 [rows, outputs].
            weight: float32 [rows].
            total: The weights of all rows of the batch, those of other workers too.
            share: This worker's share of the batch's rows, which a loss for the batch as a whole is weighted by.
        """
        if not self.a_row:
            return tf.cast(self.own(y, outputs), tf.float32) * share
        return tf.reduce_sum(self._rows(y, outputs) * weight) / total

    def _rows(self, y: Any, outputs: Any) -> Any:
        loss = self.loss
        if isinstance(loss, Custom):
            return tf.cast(self.own(y, outputs), tf.float32)
        if isinstance(loss, CrossEntropy):
            classes = outputs.shape[1]
            truth = tf.one_hot(y, classes, dtype=tf.float32)
            smooth = loss.label_smoothing
            if smooth:
                truth = truth * (1 - smooth) + smooth / classes
            return tf.nn.softmax_cross_entropy_with_logits(truth, outputs)
        error = (outputs - y)[:, 0]
        if isinstance(loss, MAE):
            return tf.abs(error)
        if isinstance(loss, Huber):
            size, delta = tf.abs(error), loss.delta
            return tf.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta))
        return error * error
