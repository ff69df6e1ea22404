"""What changes the weights in `TensorFlowTrainer`: Keras's optimizers, and the scale of losses of 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.train._keras import keras, tf

if TYPE_CHECKING:
    from sp_ray_ml.train.torch import Optimizer

__all__ = ["LossScale", "make_optimizer"]

_GROWS_AFTER = 2_000


def make_optimizer(settings: Optimizer) -> Any:
    """Keras's optimizer of these settings; the weight decay of `adam` and `sgd` is the `Stepper`'s work."""
    rate = settings.learning_rate
    if settings.kind == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9 if settings.momentum is None else settings.momentum)
    first, second = settings.betas
    if settings.kind == "adam":
        return keras.optimizers.Adam(rate, beta_1=first, beta_2=second, epsilon=1e-8)
    decay = 0.01 if settings.weight_decay is None else settings.weight_decay
    return keras.optimizers.AdamW(rate, weight_decay=decay, beta_1=first, beta_2=second, epsilon=1e-8)


class LossScale:
    """What losses are multiplied by so that gradients of 16 bits do not vanish, and how it changes.

    A step whose gradients are not finite is left out and halves it; 2,000 good ones in a row double it.

    Source: Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2.
    """

    def __init__(self) -> None:
        local = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.factor = tf.Variable(2.0**16, dtype=tf.float32, **local)
        self._good = tf.Variable(0, dtype=tf.int64, **local)
        self.variables = [self.factor, self._good]

    def update(self, finite: Any) -> None:
        """After a step."""
        good = tf.where(finite, self._good + 1, tf.zeros_like(self._good))
        factor = tf.where(finite, self.factor, self.factor / 2)
        grown = good >= _GROWS_AFTER
        self.factor.assign(tf.where(grown, factor * 2, factor))
        self._good.assign(tf.where(grown, tf.zeros_like(good), good))
