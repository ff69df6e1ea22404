"""`TensorFlowTrainer`: neural networks of Keras on TensorFlow, on a table. Importing it imports no heavy library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pydantic

from sp_ray_ml.config import Custom, Family, located
from sp_ray_ml.train._keras_quiet import quiet
from sp_ray_ml.train._loop_trainer import LoopTrainer
from sp_ray_ml.train.settings import EarlyStopping, Schedule
from sp_ray_ml.train.table import Learned, OnEpoch
from sp_ray_ml.train.torch import MLP, Optimizer, TableLoss

if TYPE_CHECKING:
    from sp_ray_ml.train._table_data import TableData
    from sp_ray_ml.train.context import Backend

__all__ = ["TensorFlowTrainer"]


class _KerasFamily(Family):
    """A family whose members of a user's own may import TensorFlow when they are first looked at."""

    def _from_mapping(self, value: dict[str, Any], base: Any) -> Any:
        with quiet():
            return super()._from_mapping(value, base)


KerasNetworkField = Annotated[
    MLP | Custom,
    _KerasFamily("keras_network", {"mlp": "sp_ray_ml.train.torch:MLP"}, callables=True, default="mlp"),
]
KerasLossField = Annotated[
    TableLoss | Custom,
    _KerasFamily(
        "keras_loss",
        {
            "mse": "sp_ray_ml.train.torch:MSE",
            "mae": "sp_ray_ml.train.torch:MAE",
            "huber": "sp_ray_ml.train.torch:Huber",
            "cross_entropy": "sp_ray_ml.train.torch:CrossEntropy",
        },
        callables=True,
    ),
]
KerasLoopField = Annotated[Custom, _KerasFamily("train_loop", {}, callables=True)]


class TensorFlowTrainer(LoopTrainer):
    """Trains a Keras model on a table, or runs a training loop of your own.

    Each epoch goes over the rows once, in batches drawn from a permutation of its own. After each the validation rows
    are scored; the best epoch's weights are kept, without validation rows the last one's. Broken off at any step, it
    goes on in the same folder to the same weights, bit for bit on the CPU.

    With workers, each takes its part of every batch and gradients are added up, so that two workers learn what one
    would. What a layer draws at random, or gathers over a batch (batch normalization), it draws and gathers in each
    worker by itself.

    With `train_loop` it writes no loop but runs yours: a function of `context` (a `TrainContext`), or one that was
    written for Ray Train. Workers are connected as a `MultiWorkerMirroredStrategy` expects: `TF_CONFIG` is set.
    """

    backend: ClassVar[Backend] = "tensorflow"

    train_loop: KerasLoopField | None = None
    """A training loop of your own, by import path or as the function. With a parameter named `context` it is given a
    `TrainContext`; without, it is one for Ray Train (`ray.train.report`, `get_dataset_shard("train")`, …)."""
    model: KerasNetworkField = MLP()
    """The network, or one of your own: a function (or class) that is called as `factory(inputs, **arguments)` with a
    `ModelInputs` (width, outputs, cardinalities, names, task) and gives a `keras.Model` of float32 [batch, width] to
    [batch, outputs]: a regression's value, or the classes' logits."""
    categories: Literal["codes", "one_hot"] | None = None
    """How a category comes to the model: as one column with its code, or as a one among zeros. Without, as codes to
    the built-in networks and as ones to yours."""
    loss: KerasLossField | None = None
    """`mse`, `mae`, `huber` or `cross_entropy`; without, `mse` or `cross_entropy` by the label. Or a function of your
    own, called as Keras calls one: `(y, outputs)` gives a loss for each row, [batch], or one for the batch. `outputs`
    are float32 [batch, outputs], `y` is float32 [batch, 1] for a regression and the classes int64 [batch] else."""
    standardize_label: bool = True
    """Whether the network learns a regression's label in standard deviations from its mean; predictions are in the
    label's own unit either way."""
    optimizer: Optimizer = Optimizer()
    """How gradients change the weights."""
    schedule: Schedule = Schedule()
    """How the learning rate runs."""
    epochs: int = pydantic.Field(default=100, ge=1)
    """Passes over the rows, at most."""
    batch_size: int | None = pydantic.Field(default=None, ge=1)
    """Rows of a batch, over all workers; without, about a fiftieth of the rows, from 32 to 1,024."""
    accumulate: int = pydantic.Field(default=1, ge=1)
    """Batches whose gradients make one step together, as one batch as large as all of them would."""
    clip: float | None = pydantic.Field(default=None, gt=0)
    """The largest norm of a step's gradient; what is longer is shortened to it."""
    precision: Literal["32", "bf16", "fp16"] = "32"
    """What the network computes in: 32 bits, or mixed with 16 (`fp16` with scaled losses, slow without a GPU)."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """When to stop, by a metric of the validation rows. None trains for all epochs and keeps the best."""
    checkpoint_steps: int | None = pydantic.Field(default=None, ge=1)
    """Steps between two checkpoints; without, one after about half a minute, and after epochs."""

    @property
    def one_hot(self) -> bool:
        """See `categories`."""
        if self.categories is None:
            return isinstance(self.model, Custom)
        return self.categories == "one_hot"

    @pydantic.model_validator(mode="after")
    def _one_gpu_a_worker(self) -> TensorFlowTrainer:
        if self.scaling.gpus_per_worker > 1:
            raise located([(("scaling", "gpus_per_worker"), "a worker uses one GPU: set more workers")])
        return self

    def learn(self, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch) -> Learned:
        """See `TableTrainer.learn`."""
        from sp_ray_ml.optional import check_installed

        check_installed("tensorflow", "TensorFlowTrainer")
        from sp_ray_ml.train._keras_loop import learn

        return learn(self, data, seed=seed, folder=folder, on_epoch=on_epoch)
