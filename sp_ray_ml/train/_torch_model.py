"""Networks of PyTorch as `TorchTrainer` makes them, and how a trained one is kept: weights as safetensors."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sp_ray_ml._import_path import import_object, why_not_imported
from sp_ray_ml.config import Custom
from sp_ray_ml.errors import CheckpointError, ConfigError, SpRayError
from sp_ray_ml.train.table_predictor import TableModel
from sp_ray_ml.train.torch import NETWORKS, ModelInputs, Network

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train._table_spec import TableSpec

__all__ = ["TorchModel", "build", "check_weights", "inputs_of", "named", "scoring_device", "weights_of"]

_FILE = "model.safetensors"
_WHERE = "train.model"


def inputs_of(spec: TableSpec) -> ModelInputs:
    """What a network for these rows is told."""
    return ModelInputs(
        spec.width, spec.target.outputs, dict(spec.cardinalities), list(spec.names), spec.target.task
    )


def scoring_device() -> torch.device:
    """Where trained models score: on the GPU when there is one, right after training as when opened again."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- making a network -------------------------------------------------------------------------------------------


def named(model: Network | Custom) -> dict[str, Any]:
    """How the manifest names a network: its kind or import path, and its settings.

    Raises:
        ConfigError: It could not be made again from that: it has no import path, its settings are no plain data, or
            it is a function that does not say that it gives a module.
    """
    if isinstance(model, Custom):
        factory = model.load()
        if isinstance(factory, torch.nn.Module):
            raise ConfigError(
                f"is a {type(factory).__name__} that was made already, which could not be made again when opened",
                where=_WHERE,
                hint="Give its class, or a function that makes it",
            )
        path = _path_of(model)
        if (reason := _why_no_factory(factory)) is not None:
            raise ConfigError(f"{path} {reason}", where=_WHERE, hint=_ANNOTATE)
    body = model.arguments if isinstance(model, Custom) else model.model_dump(mode="json")
    try:
        about: dict[str, Any] = {**body, "kind": NETWORKS.kind_of(model)}
        json.dumps(about, allow_nan=False)
    except ConfigError as error:
        raise ConfigError(error.message, where=_WHERE, hint=error.hint) from None
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"its arguments cannot be saved: {error}",
            where=_WHERE,
            hint="Use numbers, texts, lists and mappings",
        ) from None
    return about


def _path_of(model: Custom) -> str:
    try:
        path = model.path
        found = import_object(path)
    except ConfigError as error:
        hint = error.hint or "Move it to the top level of a module, and import it from there"
        raise ConfigError(error.message, where=_WHERE, hint=hint) from None
    if found is not model.load():
        raise ConfigError(
            f"{path} is another object than the one given", where=_WHERE, hint="Give the import path itself"
        )
    return path


_ANNOTATE = "Use a subclass of torch.nn.Module, or say that the function returns one: def model(inputs) -> torch.nn.Module"


def _why_no_factory(factory: Any) -> str | None:
    """Why an object that an import path leads to may not be called to make a network; None if it may."""
    if inspect.isclass(factory):
        if issubclass(factory, torch.nn.Module | Network):
            return None
        return "is no torch.nn.Module"
    if not inspect.isfunction(factory):
        return f"is a {type(factory).__name__}, neither a subclass of torch.nn.Module nor a function"
    try:
        returned = typing.get_type_hints(factory).get("return")
    except (NameError, TypeError, AttributeError) as error:
        return f"has annotations that cannot be read: {error}"
    if inspect.isclass(returned) and issubclass(returned, torch.nn.Module):
        return None
    return "does not say that it returns a torch.nn.Module"


def build(model: Network | Custom, inputs: ModelInputs) -> torch.nn.Module:
    """Call the factory.

    Raises:
        ConfigError: It raises, or gives no module, or one whose weights are nowhere.
    """
    if isinstance(model, Custom):
        factory, name = model.load(), getattr(model.target, "__qualname__", str(model.target))
        network = _called(lambda: factory(inputs, **model.arguments), name)
    else:
        name = type(model).__name__
        network = _called(lambda: model.build(inputs), name)
    if not isinstance(network, torch.nn.Module):
        given = "nothing" if network is None else f"a {type(network).__name__}"
        raise ConfigError(f"{name} gives {given}, not a torch.nn.Module", where=_WHERE)
    check_weights(network, name)
    return network


def check_weights(network: torch.nn.Module, name: str) -> None:
    """Refuse a model whose weights are nowhere; `name` is what has made it."""
    if any(weight.is_meta for weight in network.parameters()):
        raise ConfigError(
            f"{name} gives a model without weights: they are on the device 'meta'",
            where=_WHERE,
            hint="Make it on the CPU; the trainer moves it",
        )


def _called(factory: Callable[[], Any], name: str) -> Any:
    try:
        return factory()
    except SpRayError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name} cannot make a model: {type(error).__name__}: {error}",
            where=_WHERE,
            hint="It is called as factory(inputs, **arguments); the trainer moves the model to its device",
        ) from error


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a network's parameters and buffers, on the CPU, each in memory of its own.

    Raises:
        ConfigError: It keeps more than tensors.
    """
    state = network.state_dict()
    if strange := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise ConfigError(f"keeps {strange[0]!r}, which is no tensor and cannot be saved", where=_WHERE)
    return {
        name: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


# --- the trained model ------------------------------------------------------------------------------------------


class TorchModel(TableModel):
    """A trained network.

    Attributes:
        network: The module, in evaluation mode.
        mean, std: What makes the network's output a regression's label again: output · std + mean.
    """

    kind = "torch"

    def __init__(
        self,
        network: torch.nn.Module,
        about: Mapping[str, Any],
        *,
        task: str,
        mean: float,
        std: float,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or scoring_device()
        self.network = network.to(self.device).eval()
        self.mean, self.std = mean, std
        self._about, self._task = dict(about), task

    def scores(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [rows, 1] or [rows, classes]."""
        with torch.inference_mode():
            outputs = self.network(torch.from_numpy(x).to(self.device)).float()
            if self._task == "regression":
                found = outputs.reshape(len(x), 1) * self.std + self.mean
            else:
                found = torch.softmax(outputs, dim=1)
            return found.cpu().numpy()  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`."""
        from safetensors.torch import save

        (folder / _FILE).write_bytes(save(weights_of(self.network)))

    def about(self) -> Mapping[str, Any]:
        """The network's factory with its settings, and the label's mean and standard deviation."""
        return {"network": self._about, "label_mean": self.mean, "label_std": self.std}

    @classmethod
    def open(cls, folder: Path, spec: TableSpec, about: Mapping[str, Any]) -> TorchModel:
        """Make the network again and fill in its weights.

        Of what an import path in the manifest leads to, only subclasses of `torch.nn.Module` and functions that are
        declared to return one are called, and only modules whose source has such a class or function are imported.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        network = _opened(dict(about["network"]), inputs_of(spec), str(folder))
        try:
            network.load_state_dict(load((folder / _FILE).read_bytes()))
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"the weights are not those of this network: {' '.join(str(error).split())[:300]}",
                where=str(folder),
            ) from None
        mean, std = float(about["label_mean"]), float(about["label_std"])
        return cls(network, about["network"], task=spec.target.task, mean=mean, std=std)


def _opened(about: dict[str, Any], inputs: ModelInputs, where: str) -> torch.nn.Module:
    kind = str(about.pop("kind"))
    kinds = NETWORKS.kinds()
    try:
        factory = import_object(kinds[kind]) if kind in kinds else _imported(kind, where)
        if inspect.isclass(factory) and issubclass(factory, Network):
            return build(factory(**about), inputs)
        return build(Custom(target=factory, arguments=about), inputs)
    except ConfigError as error:
        raise CheckpointError(f"the network cannot be made again: {error.message}", where=where) from error


def _imported(path: str, where: str) -> Any:
    if (reason := why_not_imported(path, functions=True)) is not None:
        raise CheckpointError(
            f"holds a network {path!r} that will not be imported: {reason}",
            where=where,
            hint="Run where its module can be imported, or import it first",
        )
    factory = import_object(path)
    if (reason := _why_no_factory(factory)) is not None:
        raise CheckpointError(f"names a network that will not be called: {path} {reason}", where=where)
    return factory
