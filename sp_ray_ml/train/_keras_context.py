"""`TrainContext` of a worker whose workers are connected by TensorFlow."""

from __future__ import annotations

import pickle
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train._keras import tf
from sp_ray_ml.train._ray_context import RayContext

if TYPE_CHECKING:
    import torch

    from sp_ray_ml.train._ray_place import Told

__all__ = ["KerasContext"]


class KerasContext(RayContext):
    """A worker of Ray Train; `strategy` is a `MultiWorkerMirroredStrategy` where it is not the only one."""

    def __init__(self, told: Told) -> None:
        super().__init__(told)
        # Once TensorFlow has computed anything, it is too late to connect.
        self._strategy = (
            tf.distribute.MultiWorkerMirroredStrategy()
            if self.world_size > 1
            else tf.distribute.get_strategy()
        )

    @property
    def strategy(self) -> Any:
        return self._strategy

    def prepare(self, model: torch.nn.Module) -> torch.nn.Module:
        raise ConfigError(
            f"prepare connects modules of PyTorch, not a {type(model).__name__}",
            where="train.train_loop",
            hint="Make the model in `with context.strategy.scope():` and run its steps by `context.strategy.run`",
        )

    @cached_property
    def _sum(self) -> Any:
        def add(value: Any) -> Any:
            # An argument has no device, and is then reduced nowhere.
            value = tf.identity(value)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)

        return tf.function(
            lambda value: self.strategy.run(add, args=(value,)), autograph=False, reduce_retracing=True
        )

    def total(self, value: Any) -> Any:
        value = tf.convert_to_tensor(value)
        return value if self.world_size == 1 else self._sum(value)

    def gather(self, value: Any) -> list[Any]:
        if self.world_size == 1:
            return [value]
        own = pickle.dumps(value)
        # Each fills in its own place among zeros: what is added up is all of them.
        place = tf.one_hot(self.rank, self.world_size, dtype=tf.int64)
        lengths = self.total(place * len(own))
        content = tf.pad(tf.io.decode_raw(own, tf.uint8), [[0, int(tf.reduce_max(lengths)) - len(own)]])
        everyones = self.total(place[:, None] * tf.cast(content, tf.int64)[None]).numpy().astype("uint8")
        return [
            pickle.loads(row[:length].tobytes())  # noqa: S301  from this training's own workers
            for row, length in zip(everyones, lengths.numpy(), strict=True)
        ]
