"""What a training of `TensorFlowTrainer` is given, and the tensors that it keeps in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.errors import CheckpointError
from sp_ray_ml.train._keras import tf
from sp_ray_ml.train._keras_losses import Objective
from sp_ray_ml.train._keras_model import KerasModel
from sp_ray_ml.train._keras_network import build, check_outputs
from sp_ray_ml.train._table_arrays import Arrays, rows_of
from sp_ray_ml.train._table_spec import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.tensorflow import TensorFlowTrainer
    from sp_ray_ml.train.torch import ModelInputs

__all__ = ["Job", "Weights", "fill_variables", "pack", "read_tensors", "values_of"]

Weights = list["NDArray[Any]"]


@dataclass(frozen=True)
class Job:
    """What the workers are given.

    Attributes:
        rows: The rows themselves, or the folder that has them as files.
        label: Mean and standard deviation that a regression's label is learned in.
        start: A trained model to go on from, as a `.keras` file.
    """

    trainer: TensorFlowTrainer
    inputs: ModelInputs
    target: Target
    rows: Mapping[str, Arrays] | Path
    batch_size: int
    label: tuple[float, float]
    seed: int
    start: bytes | None

    def arrays(self, part: str) -> Arrays | None:
        """The rows of a part, or None."""
        return rows_of(self.rows, part)

    def model(self, network: Any) -> KerasModel:
        """A network as the model that is sealed."""
        mean, std = self.label
        return KerasModel(network, self.inputs.width, task=self.target.task, mean=mean, std=std)

    def network(self) -> tuple[Any, Objective]:
        """The network with its first weights, or those that it goes on from, and its loss, both shown a few rows."""
        train = self.arrays("train")
        assert train is not None
        objective = Objective(self.trainer, self.target, weighted=train.weight is not None)
        if self.start is None:
            network = build(self.trainer.model, self.inputs)
        else:
            network = (
                self.model(None)
                .from_bytes(
                    self.start,
                    self.inputs.width,
                    task=self.target.task,
                    mean=self.label[0],
                    std=self.label[1],
                )
                .network
            )
        # More rows than there are outputs: a loss for each class cannot be taken for one for each row.
        count = self.inputs.outputs + 2
        some = np.resize(np.arange(min(len(train), count)), count)
        outputs = check_outputs(
            network, tf.constant(np.ascontiguousarray(train.x[some])), self.inputs.outputs
        )
        y = np.asarray(train.y[some])
        objective.check(tf.constant(y[:, None] if self.target.task == "regression" else y), outputs)
        return network, objective


# --- tensors in files -------------------------------------------------------------------------------------------


def values_of(variables: Any) -> Weights:
    """Copies of what variables hold."""
    return [np.array(tf.convert_to_tensor(variable)) for variable in variables]


def pack(values: Weights) -> bytes:
    """Tensors as a file of safetensors."""
    from safetensors.numpy import save

    content: bytes = save({f"{place:05}": np.asarray(value, order="C") for place, value in enumerate(values)})
    return content


def read_tensors(file: Path) -> Weights:
    """What `pack` gave.

    Raises:
        CheckpointError: The file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(file.read_bytes())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be gone on from: {error}", where=str(file)) from None
    return [found[name] for name in sorted(found)]


def fill_variables(variables: Any, values: Weights, where: Path) -> None:
    """Put values into variables.

    Raises:
        CheckpointError: They are those of other ones.
    """
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [value.shape for value in values]:
        raise CheckpointError(
            f"its weights {[value.shape for value in values][:6]} are those of another network, this one has {shapes[:6]}",
            where=str(where),
            hint="Train in another folder, or with the model that it was made with",
        )
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
