"""What a training of `TorchTrainer` is given, and its network and optimizer before the first step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from sp_ray_ml.errors import CheckpointError, ConfigError
from sp_ray_ml.train._seeds import hash_seed
from sp_ray_ml.train._table_arrays import Arrays, rows_of
from sp_ray_ml.train._table_spec import Target
from sp_ray_ml.train._torch_losses import Objective
from sp_ray_ml.train._torch_model import TorchModel, build

if TYPE_CHECKING:
    from sp_ray_ml.train.torch import ModelInputs, Optimizer, TorchTrainer

__all__ = ["Job", "fill", "first_network", "make_optimizer", "read_weights"]


@dataclass(frozen=True)
class Job:
    """What the workers are given.

    Attributes:
        rows: The rows themselves, or the folder that has them as files.
        label: Mean and standard deviation that a regression's label is learned in.
        start: Weights of a trained model to go on from.
    """

    trainer: TorchTrainer
    inputs: ModelInputs
    target: Target
    rows: Mapping[str, Arrays] | Path
    batch_size: int
    label: tuple[float, float]
    network: Mapping[str, Any]
    seed: int
    start: Mapping[str, torch.Tensor] | None

    def arrays(self, part: str) -> Arrays | None:
        """The rows of a part, or None."""
        return rows_of(self.rows, part)

    def model(self, network: torch.nn.Module, device: torch.device | None = None) -> TorchModel:
        """A network as the model that is sealed."""
        mean, std = self.label
        return TorchModel(network, self.network, task=self.target.task, mean=mean, std=std, device=device)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return load(file.read_bytes())  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot be gone on from: {error}", where=str(file)) from None


def fill(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Put weights into a network.

    Raises:
        CheckpointError: They are those of another one.
    """
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise CheckpointError(
            f"its weights are those of another network: {' '.join(str(error).split())[:300]}",
            where=str(where),
            hint="Train in another folder, or with the model that it was made with",
        ) from None


def first_network(job: Job, device: torch.device, train: Arrays) -> torch.nn.Module:
    """Make the network and show it a few rows, so that what is wrong with it is said at once and in its words.

    Raises:
        ConfigError: The factory, the network or the loss does not do what it should.
    """
    torch.manual_seed(hash_seed(job.seed))
    network = build(job.trainer.model, job.inputs).to(device)
    # More rows than outputs: a loss for each class cannot be taken for one for each row.
    count = job.inputs.outputs + 2
    some = np.resize(np.arange(min(len(train), count)), count)
    x = torch.from_numpy(np.ascontiguousarray(train.x[some])).to(device)
    y = torch.from_numpy(np.ascontiguousarray(train.y[some])).to(device)
    network.eval()
    with torch.no_grad():
        outputs = _outputs(network, x, job.inputs.outputs)
        Objective(job.trainer, job.target, weighted=train.weight is not None).check(outputs, y)
    if job.start is not None:
        fill(network, job.start, "start_from")
    return network


def _outputs(network: torch.nn.Module, x: torch.Tensor, width: int) -> torch.Tensor:
    name = type(network).__name__
    try:
        outputs = network(x)
    except Exception as error:
        raise ConfigError(
            f"{name} fails on rows {tuple(x.shape)} on {x.device}: {type(error).__name__}: {error}",
            where="train.model",
            hint=f"forward(x) is given float32 [batch, {x.shape[1]}] on the model's device",
        ) from error
    if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
        kind = outputs.dtype if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise ConfigError(f"{name} must return a tensor of floats, got {kind}", where="train.model")
    if outputs.device.type != x.device.type:
        raise ConfigError(
            f"{name} returns outputs on the device {outputs.device}, its rows and weights are on {x.device}",
            where="train.model",
            hint="Make new tensors in forward with device=x.device",
        )
    if outputs.shape != (len(x), width) and not (width == 1 and outputs.shape == (len(x),)):
        raise ConfigError(
            f"{name} must return [batch, {width}], got {tuple(outputs.shape)} for {len(x)} rows",
            where="train.model",
        )
    return outputs


def make_optimizer(
    settings: Optimizer, network: torch.nn.Module, device: torch.device
) -> torch.optim.Optimizer:
    """What changes the weights that can be trained."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        raise ConfigError("the model has no weight that could be trained", where="train.model")
    rate, decay = settings.learning_rate, settings.weight_decay
    # One pass over all weights instead of one an operation.
    fused = device.type in {"cpu", "cuda"} and all(weight.is_floating_point() for weight in weights)
    if settings.kind == "sgd":
        momentum = 0.9 if settings.momentum is None else settings.momentum
        return torch.optim.SGD(weights, lr=rate, momentum=momentum, weight_decay=decay or 0.0, fused=fused)
    adam = torch.optim.AdamW if settings.kind == "adamw" else torch.optim.Adam
    default = 0.01 if settings.kind == "adamw" else 0.0
    decay = default if decay is None else decay
    return adam(weights, lr=rate, betas=settings.betas, weight_decay=decay, fused=fused)
