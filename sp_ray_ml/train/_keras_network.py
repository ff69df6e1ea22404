"""Networks of Keras as `TensorFlowTrainer` makes them: the built-in ones, and those of a user's own factory."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.config import Custom
from sp_ray_ml.errors import ConfigError, SpRayError
from sp_ray_ml.train._keras import keras, tf

if TYPE_CHECKING:
    from sp_ray_ml.train.torch import MLP, ModelInputs

__all__ = ["build", "check_outputs", "own_random"]

_WHERE = "train.model"


@contextlib.contextmanager
def own_random(seed: int, precision: str = "32") -> Iterator[None]:
    """Everything that Keras draws comes from a seed, and what Python and NumPy draw elsewhere is left alone."""
    before, numpy_before, policy = random.getstate(), np.random.get_state(), keras.config.dtype_policy()
    keras.utils.set_random_seed(seed % 2**32)
    if precision != "32":
        keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bf16" else "mixed_float16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        random.setstate(before)
        np.random.set_state(numpy_before)


def build(model: MLP | Custom, inputs: ModelInputs) -> Any:
    """Call the factory.

    Raises:
        ConfigError: It raises, or gives no `keras.Model` that can be trained.
    """
    if not isinstance(model, Custom):
        return _mlp(model, inputs)
    factory = model.load()
    if isinstance(factory, keras.Model):
        raise ConfigError(
            f"is a {type(factory).__name__} that was made already, which could not be made again",
            where=_WHERE,
            hint="Give a function that makes it",
        )
    name = getattr(factory, "__qualname__", str(model.target))
    try:
        network = factory(inputs, **model.arguments)
    except SpRayError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{name} cannot make a model: {type(error).__name__}: {error}",
            where=_WHERE,
            hint="It is called as factory(inputs, **arguments)",
        ) from error
    if not isinstance(network, keras.Model):
        given = "nothing" if network is None else f"a {type(network).__name__}"
        raise ConfigError(f"{name} gives {given}, not a keras.Model", where=_WHERE)
    return network


def check_outputs(network: Any, x: Any, width: int) -> Any:
    """Show a network some rows; this also makes its weights, where they were not yet.

    Raises:
        ConfigError: It fails on them, or gives something else than [batch, width].
    """
    name = type(network).__name__ if type(network) is not keras.Model else "the model"
    try:
        outputs = network(x, training=False)
    except Exception as error:
        raise ConfigError(
            f"{name} fails on rows {tuple(x.shape)}: {type(error).__name__}: {str(error).strip()}",
            where=_WHERE,
            hint=f"It is called with float32 [batch, {x.shape[1]}]",
        ) from error
    if not tf.is_tensor(outputs) or not outputs.dtype.is_floating:
        kind = outputs.dtype.name if tf.is_tensor(outputs) else type(outputs).__name__
        raise ConfigError(f"{name} must return a tensor of floats, got {kind}", where=_WHERE)
    if tuple(outputs.shape) != (len(x), width) and not (width == 1 and tuple(outputs.shape) == (len(x),)):
        raise ConfigError(
            f"{name} must return [batch, {width}], got {tuple(outputs.shape)} for {len(x)} rows", where=_WHERE
        )
    if not network.trainable_variables:
        raise ConfigError("has no weight that could be trained", where=_WHERE)
    return tf.reshape(tf.cast(outputs, tf.float32), (len(x), width))


# --- the built-in network ---------------------------------------------------------------------------------------


def _embedding_width(categories: int) -> int:
    """A rule of thumb that fastai came to on many tables: 1.6 n^0.56, at most 50."""
    return int(min(50, max(2, round(1.6 * categories**0.56))))


@keras.saving.register_keras_serializable(package="sp_ray_ml")
class TakeColumns(keras.layers.Layer):  # type: ignore[misc]
    """Some columns of a matrix: [batch, width] to [batch, columns].

    Attributes:
        columns: Their places.
    """

    def __init__(self, columns: list[int], **options: Any) -> None:
        # Codes of categories must stay whole, whatever the layers after it compute in.
        super().__init__(**{"dtype": "float32", "autocast": False, **options})
        self.columns = list(columns)

    def call(self, x: Any) -> Any:
        """Take them."""
        return tf.gather(x, self.columns, axis=1)

    def compute_output_shape(self, shape: Any) -> Any:
        """The shape of what it gives."""
        return (shape[0], len(self.columns))

    def get_config(self) -> dict[str, Any]:
        """What the layer is made again from."""
        return {**super().get_config(), "columns": self.columns}


def _mlp(settings: MLP, inputs: ModelInputs) -> Any:
    layers = keras.layers
    x = keras.Input((inputs.width,), dtype="float32")
    hidden = x
    if inputs.cardinalities:
        numbers = [column for column in range(inputs.width) if column not in inputs.cardinalities]
        vectors = []
        for column, count in inputs.cardinalities.items():
            embedding = layers.Embedding(
                count,
                settings.embedding_dim or _embedding_width(count),
                embeddings_initializer=keras.initializers.RandomNormal(stddev=0.1),
            )
            vectors.append(layers.Flatten()(embedding(TakeColumns([column])(x))))
        joined = layers.Concatenate()(vectors) if len(vectors) > 1 else vectors[0]
        if settings.dropout:
            joined = layers.Dropout(settings.dropout)(joined)
        hidden = layers.Concatenate()([TakeColumns(numbers)(x), joined]) if numbers else joined
    for width in settings.hidden:
        hidden = layers.Dense(width, activation=settings.activation)(hidden)
        if settings.dropout:
            hidden = layers.Dropout(settings.dropout)(hidden)
    return keras.Model(x, layers.Dense(inputs.outputs, dtype="float32")(hidden))
