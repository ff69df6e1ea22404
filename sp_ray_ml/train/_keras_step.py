"""The steps of `TensorFlowTrainer`: several in one graph, alone or as one of the workers of a `tf.distribute` strategy."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.train._keras import keras, tf

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train._keras_losses import Objective
    from sp_ray_ml.train._table_data import Arrays
    from sp_ray_ml.train.context import TrainContext
    from sp_ray_ml.train.tensorflow import TensorFlowTrainer
    from sp_ray_ml.train.torch import Optimizer

__all__ = ["Stepper", "make_optimizer"]

_CHUNK_BYTES = 64 * 2**20
_CHUNK_STEPS = 64


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


class Stepper:
    """Takes steps.

    Args:
        trainer: The settings.
        context: Which part of a batch is this worker's.
        strategy: What connects the workers; None for one that is alone.
        network: The model.
        optimizer: Changes the weights.
        objective: The loss.
        arrays: All rows.
        label: Mean and standard deviation that a regression's label is learned in.
        batch_size: Rows of a step, over all workers.

    Attributes:
        steps: Steps of an epoch.
        chunk: Steps that go into one call of `run`, at most.
    """

    def __init__(
        self,
        trainer: TensorFlowTrainer,
        context: TrainContext,
        strategy: Any,
        network: Any,
        optimizer: Any,
        objective: Objective,
        arrays: Arrays,
        label: tuple[float, float],
        batch_size: int,
    ) -> None:
        self._rank, self._world, self._strategy = context.rank, context.world_size, strategy
        self._network, self._optimizer, self._objective = network, optimizer, objective
        self._clip, self._batch_size, self._arrays, self._label = trainer.clip, batch_size, arrays, label
        settings = trainer.optimizer
        self._shrink = (settings.weight_decay or 0.0) if settings.kind != "adamw" else 0.0
        self._regression = objective.regression
        self._table: Any = None
        if self._world == 1:
            # A worker that is not alone takes its rows out of files that all of them share.
            self._table = (tf.constant(arrays.x), tf.constant(self._labels(slice(None))))
        self.steps = math.ceil(len(arrays) / batch_size)
        self.chunk = max(1, min(_CHUNK_STEPS, _CHUNK_BYTES // (4 * batch_size * arrays.x.shape[1])))
        self._run = tf.function(self._chunk, autograph=False, reduce_retracing=True)
        self._together = tf.function(self._step_of_all, autograph=False, reduce_retracing=True)

    def _labels(self, rows: Any) -> NDArray[Any]:
        y = np.asarray(self._arrays.y[rows])
        if not self._regression:
            return y.astype(np.int64)
        mean, std = self._label
        return (y if (mean, std) == (0.0, 1.0) else ((y - mean) / std).astype(np.float32))[:, None]

    # --- which rows ---------------------------------------------------------------------------------------------

    def run(
        self, order: NDArray[np.int64], first: int, count: int, rates: list[float]
    ) -> NDArray[np.float64]:
        """Take some steps.

        Args:
            order: int64 [rows], the epoch's permutation, the same on all workers.
            first: The first step.
            count: How many.
            rates: The learning rate of each.

        Returns:
            This worker's part of each step's mean loss, [count]: over all workers they add up to the mean.
        """
        parts, totals, shares, ends = [], [], [], [0]
        for step in range(first, first + count):
            batch = order[step * self._batch_size : (step + 1) * self._batch_size]
            own = batch[len(batch) * self._rank // self._world : len(batch) * (self._rank + 1) // self._world]
            weight = self._arrays.weight
            totals.append(
                max(float(weight[batch].sum(dtype=np.float64)), 1e-12) if weight is not None else len(batch)
            )
            shares.append(len(own) / len(batch))
            # All workers must go through the network: one without rows takes one that counts nothing.
            parts.append(own if len(own) else batch[:1])
            ends.append(ends[-1] + len(parts[-1]))
        rows = np.concatenate(parts)
        weights = np.ones(len(rows), np.float32) if weight is None else weight[rows].astype(np.float32)
        for place, share in enumerate(shares):
            if not share:
                weights[ends[place] : ends[place + 1]] = 0
        if self._table is not None:
            x, y = (tf.gather(values, rows) for values in self._table)
        else:
            x, y = tf.constant(self._arrays.x[rows]), tf.constant(self._labels(rows))
        numbers = [tf.constant(np.asarray(values, np.float32)) for values in (totals, shares, rates)]
        if self._strategy is None:
            return np.asarray(self._run(x, y, tf.constant(weights), tf.constant(ends), *numbers))
        # Workers reduce between one another: that cannot be within a loop of the graph.
        losses = []
        for place in range(count):
            rows_of = slice(ends[place], ends[place + 1])
            given = (x[rows_of], y[rows_of], tf.constant(weights[rows_of]), *(v[place] for v in numbers))
            losses.append(float(self._together(*given)))
        return np.array(losses)

    def fingerprint(self, order: NDArray[np.int64], step: int) -> str:
        """SHA-256 of a step's rows as the network is given them, its first 16 digits."""
        batch = order[step * self._batch_size : (step + 1) * self._batch_size]
        digest = hashlib.sha256(np.ascontiguousarray(self._arrays.x[batch]).tobytes())
        digest.update(np.ascontiguousarray(self._labels(batch)).tobytes())
        if self._arrays.weight is not None:
            digest.update(np.ascontiguousarray(self._arrays.weight[batch]).tobytes())
        return digest.hexdigest()[:16]

    # --- the graph ----------------------------------------------------------------------------------------------

    def _chunk(self, x: Any, y: Any, weight: Any, ends: Any, totals: Any, shares: Any, rates: Any) -> Any:
        count = tf.shape(totals)[0]

        def body(step: Any, losses: Any) -> Any:
            own = slice(ends[step], ends[step + 1])
            loss = self._step(x[own], y[own], weight[own], totals[step], shares[step], rates[step])
            return step + 1, losses.write(step, tf.cast(loss, tf.float64))

        losses = tf.TensorArray(tf.float64, size=count, element_shape=[])
        _, losses = tf.while_loop(lambda step, _: step < count, body, (0, losses), parallel_iterations=1)
        return losses.stack()

    def _step_of_all(self, *given: Any) -> Any:
        return self._strategy.run(self._step, args=given)

    def _step(self, x: Any, y: Any, weight: Any, total: Any, share: Any, rate: Any) -> Any:
        variables = self._network.trainable_variables
        with tf.GradientTape() as tape:
            outputs = tf.cast(self._network(x, training=True), tf.float32)
            outputs = tf.reshape(outputs, (-1, outputs.shape[1] if outputs.shape.rank == 2 else 1))
            loss = self._objective(y, outputs, weight, total, share)
            for penalty in self._network.losses:
                loss += tf.cast(penalty, tf.float32) / self._world
        gradients = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
        # Rows of an embedding that come more than once would be added up in any order.
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]
        together = 1
        if self._clip is not None:
            if self._world > 1:
                # Keras adds the workers' gradients up: those that are added up already must then be divided.
                together = self._world
                replica = tf.distribute.get_replica_context()
                gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip)
            gradients = [gradient / together for gradient in gradients] if together > 1 else gradients
        if self._shrink:
            gradients = [
                gradient + self._shrink / self._world * tf.convert_to_tensor(variable.value)
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply(gradients, variables)
        return loss
