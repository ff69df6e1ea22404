"""A trained Keras model, kept as `.keras` and opened in Keras's safe mode."""

from __future__ import annotations

import inspect
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml._import_path import import_object, why_not_imported
from sp_ray_ml.errors import CheckpointError, ConfigError, SpRayError
from sp_ray_ml.train import _keras_network  # noqa: F401  registers the layers of the built-in networks
from sp_ray_ml.train._keras import keras, tf
from sp_ray_ml.train.table_predictor import BATCH_ROWS, TableModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train._table_spec import TableSpec

__all__ = ["KerasModel"]

_FILE = "model.keras"


class KerasModel(TableModel):
    """A trained model.

    Attributes:
        network: The `keras.Model`.
        mean, std: What makes the network's output a regression's label again: output · std + mean.
    """

    kind = "tensorflow"

    def __init__(self, network: Any, width: int, *, task: str, mean: float, std: float) -> None:
        self.network, self.width, self.task = network, width, task
        self.mean, self.std = mean, std

    def outputs(self, x: Any) -> Any:
        """As `scores`, of a tensor of any number of rows."""
        found = tf.cast(self.network(x, training=False), tf.float32)
        if self.task == "regression":
            return tf.reshape(found, (-1, 1)) * np.float32(self.std) + np.float32(self.mean)
        return tf.nn.softmax(found)

    @cached_property
    def _scores(self) -> Any:
        shape = tf.TensorSpec([BATCH_ROWS, self.width], tf.float32)
        return tf.function(self.outputs, input_signature=[shape])

    def scores(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [rows, 1] or [rows, classes]."""
        return np.asarray(self._scores(tf.constant(x)))

    def to_bytes(self) -> bytes:
        """The network as a `.keras` file.

        Raises:
            ConfigError: It cannot be kept so that it could be opened again.
        """
        with tempfile.TemporaryDirectory(prefix="sp_ray_ml-keras-") as folder:
            file = Path(folder) / _FILE
            try:
                self.network.save(file)
            except Exception as error:
                raise ConfigError(
                    f"cannot be kept: {type(error).__name__}: {_first_line(error)}",
                    where="train.model",
                    hint="A class of your own needs get_config(): see keras.io/guides/serialization_and_saving",
                ) from error
            return file.read_bytes()

    def save(self, folder: Path) -> None:
        """Write `model.keras`."""
        (folder / _FILE).write_bytes(self.to_bytes())

    def about(self) -> Mapping[str, Any]:
        """The label's mean and standard deviation."""
        return {"label_mean": self.mean, "label_std": self.std}

    @classmethod
    def open(cls, folder: Path, spec: TableSpec, about: Mapping[str, Any]) -> KerasModel:
        """Open `model.keras`.

        Of what it names outside Keras only subclasses of Keras's own building blocks are made, and only from modules
        that are Python source with such a class in it.
        """
        network = load_network(folder / _FILE)
        mean, std = float(about["label_mean"]), float(about["label_std"])
        return cls(network, spec.width, task=spec.target.task, mean=mean, std=std)

    @classmethod
    def from_bytes(cls, content: bytes, width: int, *, task: str, mean: float, std: float) -> KerasModel:
        """What `to_bytes` gave, opened."""
        with tempfile.TemporaryDirectory(prefix="sp_ray_ml-keras-") as folder:
            file = Path(folder) / _FILE
            file.write_bytes(content)
            return cls(load_network(file), width, task=task, mean=mean, std=std)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else ""


# --- opening ----------------------------------------------------------------------------------------------------


def load_network(file: Path) -> Any:
    """Open a `.keras` file whose content may come from anywhere.

    Raises:
        CheckpointError: It is none, or names something that will not be made.
    """
    where = str(file)
    try:
        with zipfile.ZipFile(file) as archive:
            config = json.loads(archive.read("config.json"))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointError(f"is no Keras model: {error}", where=where) from None
    objects: dict[str, Any] = {}
    for entry in _entries(config):
        objects |= _own_objects(entry, where)
    try:
        network = keras.saving.load_model(file, custom_objects=objects, compile=False, safe_mode=True)
    except SpRayError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"cannot be opened as a Keras model: {_first_line(error)}", where=where
        ) from error
    if not isinstance(network, keras.Model):
        raise CheckpointError(f"holds a {type(network).__name__}, not a keras.Model", where=where)
    return network


def _entries(config: Any) -> Iterator[Mapping[str, Any]]:
    """All that a config wants to be made: whatever has a class, at any depth."""
    if isinstance(config, Mapping):
        if "class_name" in config or "registered_name" in config:
            yield config
        for value in config.values():
            yield from _entries(value)
    elif isinstance(config, list):
        for value in config:
            yield from _entries(value)


def _own_objects(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The class of a user's own that an entry names, by the names that Keras looks for it under."""
    module, name = entry.get("module"), entry.get("class_name")
    registered = entry.get("registered_name")
    if name == "function":
        name = registered = entry.get("config")
        if module == "builtins" or not isinstance(name, str):
            return {}  # Keras looks such a name up among its own
    if not isinstance(module, str):
        return {}  # only what is registered is found without a module
    if module == "keras" or module.startswith("keras."):
        return {}  # Keras makes only its own building blocks of these: safe mode
    if module == "builtins" and isinstance(name, str) and name.startswith("__"):
        return {}  # a tensor, an array, a slice; safe mode refuses a lambda
    if isinstance(registered, str) and keras.saving.get_registered_object(registered) is not None:
        return {}
    found = _class(f"{module}:{name}", where)
    return {str(name): found, str(registered or name): found}


def _class(path: str, where: str) -> Any:
    kinds = (
        keras.Model,
        keras.layers.Layer,
        keras.initializers.Initializer,
        keras.regularizers.Regularizer,
        keras.constraints.Constraint,
    )
    module, _, name = path.partition(":")
    if (reason := why_not_imported(path)) is not None:
        raise CheckpointError(
            f"names {path!r}, which will not be imported: {reason}",
            where=where,
            hint="Run where its module can be imported, or import it first",
        )
    try:
        found = import_object(path)
    except ConfigError as error:
        raise CheckpointError(
            f"names {path!r}, which cannot be imported: {error.message}", where=where
        ) from None
    if not inspect.isclass(found) or not issubclass(found, kinds):
        raise CheckpointError(
            f"names {name!r} of {module}, which will not be called: it is no layer or model of Keras",
            where=where,
        )
    return found
