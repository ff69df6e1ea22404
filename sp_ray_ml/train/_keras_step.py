"""The steps of `TensorFlowTrainer`: several in one graph, alone or as one of the workers of a `tf.distribute` strategy."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.train._keras import tf

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train._keras_losses import Objective
    from sp_ray_ml.train._keras_optimizer import LossScale
    from sp_ray_ml.train._table_arrays import Arrays
    from sp_ray_ml.train.context import TrainContext
    from sp_ray_ml.train.tensorflow import TensorFlowTrainer

__all__ = ["Stepper"]

_CHUNK_BYTES = 64 * 2**20
_CHUNK_STEPS = 64


class Stepper:
    """Takes steps.

    Args:
        trainer: The settings.
        context: Which part of a batch is this worker's.
        strategy: What connects the workers; None for one that is alone.
        network: The model.
        optimizer: Changes the weights.
        scale: Of losses of 16 bits; None for those of 32.
        objective: The loss.
        arrays: All rows.
        label: Mean and standard deviation that a regression's label is learned in.
        batch_size: Rows of one forward pass, over all workers.

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
        scale: LossScale | None,
        objective: Objective,
        arrays: Arrays,
        label: tuple[float, float],
        batch_size: int,
    ) -> None:
        self._rank, self._world, self._strategy = context.rank, context.world_size, strategy
        self._network, self._optimizer, self._objective = network, optimizer, objective
        self._clip, self._batch_size, self._arrays, self._label = trainer.clip, batch_size, arrays, label
        self._scale, self._alone = scale, trainer.accumulate == 1
        settings = trainer.optimizer
        self._shrink = (settings.weight_decay or 0.0) if settings.kind != "adamw" else 0.0
        self._regression = objective.regression
        self._table: Any = None
        if self._world == 1:
            # A worker that is not alone takes its rows out of files that all of them share.
            self._table = (tf.constant(arrays.x), tf.constant(self._labels(slice(None))))
        self._group = batch_size * trainer.accumulate
        self.steps = math.ceil(len(arrays) / self._group)
        self.chunk = max(1, min(_CHUNK_STEPS, _CHUNK_BYTES // (4 * self._group * arrays.x.shape[1])))
        self._run = self._graph(self._chunk)
        parts = (self._gradients, self._added, self._reduced, self._change)
        self._worker = {part: self._run_by_all(part) for part in parts}

    def _run_by_all(self, function: Any) -> Any:
        def run(*given: Any) -> Any:
            # An argument has no device, and is then reduced nowhere.
            return function(*tf.nest.map_structure(tf.identity, given))

        return self._graph(lambda *given: self._strategy.run(run, args=given))

    @staticmethod
    def _graph(function: Any) -> Any:
        return tf.function(function, autograph=False, reduce_retracing=True)

    def _labels(self, rows: Any) -> NDArray[Any]:
        y = np.asarray(self._arrays.y[rows])
        if not self._regression:
            return y.astype(np.int64)
        mean, std = self._label
        return (y if (mean, std) == (0.0, 1.0) else ((y - mean) / std).astype(np.float32))[:, None]

    # --- which rows ---------------------------------------------------------------------------------------------

    def _rows(self, order: NDArray[np.int64], step: int) -> NDArray[np.int64]:
        return order[step * self._group : (step + 1) * self._group]

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
        weight = self._arrays.weight
        parts, weights, totals, shares, sizes, ends, batches = [], [], [], [], [], [0], [0]
        for step in range(first, first + count):
            rows = self._rows(order, step)
            total = len(rows) if weight is None else max(float(weight[rows].sum(dtype=np.float64)), 1e-12)
            for start in range(0, len(rows), self._batch_size):
                batch = rows[start : start + self._batch_size]
                begin = len(batch) * self._rank // self._world
                own = batch[begin : len(batch) * (self._rank + 1) // self._world]
                # All workers must go through the network: one without rows takes one that counts nothing.
                parts.append(own if len(own) else batch[:1])
                counts = np.ones(len(parts[-1]), np.float32) if weight is None else weight[parts[-1]]
                weights.append(np.asarray(counts if len(own) else np.zeros(1), np.float32))
                totals.append(total)
                shares.append(len(own) / len(rows))
                sizes.append(len(batch) / len(rows))
                ends.append(ends[-1] + len(parts[-1]))
            batches.append(len(parts))
        chosen = np.concatenate(parts)
        if self._table is not None:
            x, y = (tf.gather(values, chosen) for values in self._table)
        else:
            x, y = tf.constant(self._arrays.x[chosen]), tf.constant(self._labels(chosen))
        counted = tf.constant(np.concatenate(weights))
        numbers = [tf.constant(np.asarray(values, np.float32)) for values in (totals, shares, sizes)]
        if self._strategy is None:
            bounds = tf.constant(ends), tf.constant(batches)
            return np.asarray(self._run(x, y, counted, *bounds, *numbers, tf.constant(rates, tf.float32)))
        # Workers reduce between one another: that cannot be within a loop of the graph.
        losses = []
        for step, rate in enumerate(rates):
            first, last = batches[step], batches[step + 1]
            for place in range(first, last):
                mine = slice(ends[place], ends[place + 1])
                given = (x[mine], y[mine], counted[mine], *(values[place] for values in numbers))
                if place == first:
                    loss, gradients = self._worker[self._gradients](*given)
                else:
                    loss, gradients = self._worker[self._added](loss, gradients, *given)
            self._together(gradients, tf.constant(rate, tf.float32))
            losses.append(float(loss))
        return np.array(losses)

    def fingerprint(self, order: NDArray[np.int64], step: int) -> str:
        """SHA-256 of a step's rows as the network is given them, its first 16 digits."""
        batch = self._rows(order, step)
        digest = hashlib.sha256(np.ascontiguousarray(self._arrays.x[batch]).tobytes())
        digest.update(np.ascontiguousarray(self._labels(batch)).tobytes())
        if self._arrays.weight is not None:
            digest.update(np.ascontiguousarray(self._arrays.weight[batch]).tobytes())
        return digest.hexdigest()[:16]

    # --- the graph ----------------------------------------------------------------------------------------------

    def _chunk(
        self,
        x: Any,
        y: Any,
        weight: Any,
        ends: Any,
        batches: Any,
        totals: Any,
        shares: Any,
        sizes: Any,
        rates: Any,
    ) -> Any:
        count = tf.shape(rates)[0]

        def batch(place: Any) -> Any:
            own = slice(ends[place], ends[place + 1])
            return x[own], y[own], weight[own], totals[place], shares[place], sizes[place]

        def body(step: Any, losses: Any) -> Any:
            first, last = batches[step], batches[step + 1]
            found = self._gradients(*batch(first))
            if not self._alone:
                _, found = tf.while_loop(
                    lambda place, _: place < last,
                    lambda place, before: (place + 1, self._added(*before, *batch(place))),
                    (first + 1, found),
                    parallel_iterations=1,
                )
            loss, gradients = found
            gradients, finite = self._reduced(gradients)
            if self._scale is None:
                self._change(gradients, rates[step])
            else:
                tf.cond(finite, lambda: self._changed(gradients, rates[step]), lambda: tf.constant(False))
                self._scale.update(finite)
            return step + 1, losses.write(step, tf.cast(loss, tf.float64))

        losses = tf.TensorArray(tf.float64, size=count, element_shape=[])
        _, losses = tf.while_loop(lambda step, _: step < count, body, (0, losses), parallel_iterations=1)
        return losses.stack()

    def _together(self, gradients: Any, rate: Any) -> None:
        """A step of all workers, from the gradients of each."""
        gradients, finite = self._worker[self._reduced](gradients)
        # What is not finite is so for all of them.
        if self._scale is None or bool(finite):
            self._worker[self._change](gradients, rate)
        if self._scale is not None:
            self._scale.update(finite)

    def _gradients(self, x: Any, y: Any, weight: Any, total: Any, share: Any, size: Any) -> Any:
        """This worker's part of a batch's loss and gradients."""
        variables = self._network.trainable_variables
        with tf.GradientTape() as tape:
            outputs = tf.cast(self._network(x, training=True), tf.float32)
            outputs = tf.reshape(outputs, (-1, outputs.shape[1] if outputs.shape.rank == 2 else 1))
            loss = self._objective(y, outputs, weight, total, share)
            for penalty in self._network.losses:
                loss += tf.cast(penalty, tf.float32) * size / self._world
            scaled = loss if self._scale is None else loss * self._scale.factor
        found = tape.gradient(scaled, [v.value for v in variables], unconnected_gradients="zero")
        # Rows of an embedding that come more than once would be added up in any order.
        return loss, [tf.convert_to_tensor(gradient) for gradient in found]

    def _added(self, loss: Any, gradients: Any, *batch: Any) -> Any:
        """A batch's loss and gradients, added to those of the step's batches before it."""
        more, others = self._gradients(*batch)
        return loss + more, [one + other for one, other in zip(gradients, others, strict=True)]

    def _reduced(self, gradients: Any) -> Any:
        """Gradients as the optimizer takes them, and whether they are finite, where it matters."""
        together = self._world > 1 and (self._clip is not None or self._scale is not None)
        if together:
            replica = tf.distribute.get_replica_context()
            gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        finite = tf.constant(True)
        if self._scale is not None:
            gradients = [gradient / self._scale.factor for gradient in gradients]
            finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients])
        if self._clip is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._clip)
        if together:
            # Keras adds the workers' gradients up: those that are added up already must then be divided.
            gradients = [gradient / self._world for gradient in gradients]
        return gradients, finite

    def _change(self, gradients: Any, rate: Any) -> None:
        """Change the weights."""
        variables = self._network.trainable_variables
        if self._shrink:
            gradients = [
                gradient + self._shrink / self._world * tf.convert_to_tensor(variable.value)
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply(gradients, variables)

    def _changed(self, gradients: Any, rate: Any) -> Any:
        self._change(gradients, rate)
        return tf.constant(True)
