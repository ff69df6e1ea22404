"""`TorchTrainer`: neural networks of PyTorch on a table. Importing it imports no heavy library."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pydantic

from sp_ray_ml.config import Custom, Family, Settings, located
from sp_ray_ml.train._loop_trainer import LoopTrainer
from sp_ray_ml.train.settings import EarlyStopping, Schedule
from sp_ray_ml.train.table import Learned, OnEpoch

if TYPE_CHECKING:
    import torch

    from sp_ray_ml.train._table_data import TableData
    from sp_ray_ml.train.context import Backend

__all__ = [
    "MAE",
    "MLP",
    "MSE",
    "NETWORKS",
    "CrossEntropy",
    "Huber",
    "ModelInputs",
    "Network",
    "Optimizer",
    "TableLoss",
    "TorchTrainer",
]


@dataclass(frozen=True)
class ModelInputs:
    """What a network is made for.

    Attributes:
        width: Columns of its input, float32 [batch, width].
        outputs: Columns of its output: 1 for a regression, else the classes' logits.
        cardinalities: Columns of the input that hold category codes, and how many codes there are (0 is for all that
            training has not seen). Empty where categories are ones among zeros.
        names: Names of the input's columns.
        task: `regression` or `classification`.
    """

    width: int
    outputs: int
    cardinalities: Mapping[int, int]
    names: Sequence[str]
    task: str


class Network(Settings):
    """A network for rows of a table.

    `build(inputs)` gives a `torch.nn.Module` whose `forward(x)` takes float32 [batch, width] and returns
    float32 [batch, outputs]. A module of your own is named by its import path: `model: {kind: "my.models:Net",
    hidden: 64}` calls `Net(inputs, hidden=64)`, `inputs` being a `ModelInputs`.
    """

    @abstractmethod
    def build(self, inputs: ModelInputs) -> torch.nn.Module:
        """Make the network."""


class MLP(Network):
    """Fully connected layers over the numbers and a learned vector for each category."""

    hidden: list[Annotated[int, pydantic.Field(ge=1)]] = pydantic.Field(default=[128, 64])
    """Width of each hidden layer."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """After each hidden layer."""
    dropout: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of each hidden layer's outputs, and of the categories' vectors' entries, set to zero while training."""
    embedding_dim: int | None = pydantic.Field(default=None, ge=1)
    """Length of each category's vector; without, 1.6 · n^0.56 for n categories, at most 50."""

    def build(self, inputs: ModelInputs) -> torch.nn.Module:
        """Make the network."""
        from sp_ray_ml.train._torch_networks import MLPModule

        return MLPModule(self, inputs)


class TableLoss(Settings):
    """Compares what a network says with the label."""


class MSE(TableLoss):
    """(y - ŷ)², for regressions."""


class MAE(TableLoss):
    """|y - ŷ|, for regressions."""


class Huber(TableLoss):
    """½ (y - ŷ)² up to `delta`, from there a line (Huber 1964), for regressions."""

    delta: float = pydantic.Field(default=1.0, gt=0)
    """Where the line begins; in standard deviations of the label where it is standardized."""


class CrossEntropy(TableLoss):
    """-log p(class), for classifications."""

    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over all classes."""


class Optimizer(Settings):
    """How gradients change the weights."""

    kind: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW (Loshchilov & Hutter 2019), Adam (Kingma & Ba 2015), or gradient descent with momentum."""
    learning_rate: float = pydantic.Field(default=1e-3, gt=0)
    """Size of the steps."""
    weight_decay: float | None = pydantic.Field(default=None, ge=0)
    """How fast weights shrink; without, 0.01 for AdamW and 0 for the others."""
    momentum: float | None = pydantic.Field(default=None, ge=0, lt=1)
    """Of `sgd`; 0.9 without."""
    betas: tuple[
        Annotated[float, pydantic.Field(ge=0, lt=1)], Annotated[float, pydantic.Field(ge=0, lt=1)]
    ] = (
        0.9,
        0.999,
    )
    """How slowly the means of gradients and of their squares change, of `adam` and `adamw`."""

    @pydantic.model_validator(mode="after")
    def _momentum_is_of_sgd(self) -> Optimizer:
        if self.momentum is not None and self.kind != "sgd":
            raise located([(("momentum",), f"is a setting of sgd; that of {self.kind} is betas")])
        return self


NETWORKS = Family("network", {"mlp": "sp_ray_ml.train.torch:MLP"}, callables=True, default="mlp")
NetworkField = Annotated[Network | Custom, NETWORKS]
TableLossField = Annotated[
    TableLoss | Custom,
    Family(
        "table_loss",
        {
            "mse": "sp_ray_ml.train.torch:MSE",
            "mae": "sp_ray_ml.train.torch:MAE",
            "huber": "sp_ray_ml.train.torch:Huber",
            "cross_entropy": "sp_ray_ml.train.torch:CrossEntropy",
        },
        callables=True,
    ),
]


class TorchTrainer(LoopTrainer):
    """Trains a network of PyTorch on a table, or runs a training loop of your own.

    Each epoch goes over the rows once, in batches drawn from a permutation of its own. After each the validation rows
    are scored; the best epoch's weights are kept, without validation rows the last one's. Broken off at any step, it
    goes on in the same folder to the same weights, bit for bit on the CPU.

    With `train_loop` it writes no loop but runs yours: a function of `context` (a `TrainContext`), or one that was
    written for Ray Train.
    """

    backend: ClassVar[Backend] = "torch"

    model: NetworkField = MLP()
    """The network, or one of your own: see `Network`."""
    categories: Literal["codes", "one_hot"] | None = None
    """How a category comes to the model: as one column with its code, or as a one among zeros. Without, as codes to
    the built-in networks and as ones to yours."""
    loss: TableLossField | None = None
    """`mse`, `mae`, `huber` or `cross_entropy`; without, `mse` or `cross_entropy` by the label. Or a function of your
    own: `(outputs, y)` gives a loss for each row, [batch], or one for the batch. For a regression both are float32
    [batch], else the logits float32 [batch, classes] and the classes int64 [batch]."""
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
    """What the network computes in: 32 bits, or mixed with 16 (`fp16` with scaled losses, on a GPU only)."""
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

    def learn(self, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch) -> Learned:
        """See `TableTrainer.learn`."""
        from sp_ray_ml.train._torch_loop import learn

        return learn(self, data, seed=seed, folder=folder, on_epoch=on_epoch)
