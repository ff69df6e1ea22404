"""A predictor of `TensorFlowTrainer` as a TensorFlow SavedModel that takes raw columns: no package of ours opens it.

saved_model.pb, variables/    graph and weights; its signature is `serving_default`
assets.extra/columns.json     the columns: their tensors, and what stands for a missing value
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.storage import new_folder, write_json
from sp_ray_ml.train._keras import tf
from sp_ray_ml.train._keras_columns import Column
from sp_ray_ml.train._keras_features import Features
from sp_ray_ml.train.table_predictor import BATCH_ROWS

if TYPE_CHECKING:
    from sp_ray_ml.train._keras_model import KerasModel
    from sp_ray_ml.train.table_predictor import TablePredictor

__all__ = ["export"]

_SIGNATURE = "serving_default"


def export(predictor: TablePredictor, path: str | os.PathLike[str]) -> None:
    """See `TablePredictor.export_saved_model`."""
    served = _Served(predictor)
    # TensorFlow takes only some names for its tensors: columns get theirs afterwards.
    inner = {name: f"column_{place:05}" for place, name in enumerate(served.features.columns)}
    specs = {
        name: tf.TensorSpec(column.spec.shape, column.dtype, name=inner[name])
        for name, column in served.features.columns.items()
    }
    served.predict = tf.function(served.outputs, input_signature=[specs], autograph=False)
    with new_folder(path) as folder:
        try:
            tf.saved_model.save(served, str(folder), signatures={_SIGNATURE: served.predict})
        except (AssertionError, ValueError, TypeError) as error:
            raise ConfigError(
                f"cannot be written as a SavedModel: {type(error).__name__}: {str(error).strip()}",
                where="train.model",
            ) from error
        _name_inputs(folder, inner)
        (folder / "assets.extra").mkdir()
        write_json(folder / "assets.extra" / "columns.json", _about(served, predictor))


class _Served(tf.Module):  # type: ignore[misc]
    """What is saved: preprocessing, network and classes."""

    def __init__(self, predictor: TablePredictor) -> None:
        super().__init__()
        model: Any = predictor.model
        self._model: KerasModel = model
        self.features = Features(predictor.spec)
        self.weights = [variable.value for variable in model.network.variables]
        self._target = predictor.spec.target
        self._names = predictor.output_names
        if self._target.task == "classification":
            values = self._target.values
            dtype = (
                tf.string if pa.types.is_string(values.type) else tf.as_dtype(values.type.to_pandas_dtype())
            )
            self._classes = tf.constant(values.to_pylist(), dtype)

    def outputs(self, columns: Any) -> Any:
        """The columns that `TablePredictor.predict` adds, by name."""
        scores = self._scores(self.features(columns))
        if self._target.task == "regression":
            return {self._names[0]: scores[:, 0]}
        best = tf.gather(self._classes, tf.argmax(scores, axis=1))
        shares = scores[:, 1] if len(self._target.classes) == 2 else scores
        return dict(zip(self._names, (best, shares), strict=True))

    def _scores(self, x: Any) -> Any:
        """The network sees batches of one size, as everywhere: another size would give other last bits."""
        rows, width = tf.shape(x)[0], self._model.width
        x = tf.pad(x, [[0, -rows % BATCH_ROWS], [0, 0]])
        outputs = tf.TensorSpec([BATCH_ROWS, self._target.outputs], tf.float32)
        batches = tf.reshape(x, [-1, BATCH_ROWS, width])
        found = tf.map_fn(self._model.outputs, batches, fn_output_signature=outputs, parallel_iterations=1)
        return tf.reshape(found, [-1, self._target.outputs])[:rows]


def _name_inputs(folder: Path, inner: dict[str, str]) -> None:
    """Give the signature's inputs the columns' own names, whatever these are."""
    from tensorflow.core.protobuf import saved_model_pb2

    names = {value: name for name, value in inner.items()}
    file = folder / "saved_model.pb"
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString(file.read_bytes())
    (graph,) = saved.meta_graphs
    inputs = graph.signature_def[_SIGNATURE].inputs
    taken = {name: type(info).FromString(info.SerializeToString()) for name, info in inputs.items()}
    inputs.clear()
    for name, info in taken.items():
        inputs[names[name]].CopyFrom(info)
    for node in graph.object_graph_def.nodes:
        function = node.bare_concrete_function
        if node.WhichOneof("kind") == "bare_concrete_function" and set(function.argument_keywords) == set(
            names
        ):
            function.argument_keywords[:] = [names[name] for name in function.argument_keywords]
    file.write_bytes(saved.SerializeToString(deterministic=True))
    # That of the file as it was before; nothing that opens a SavedModel needs one.
    (folder / "fingerprint.pb").unlink(missing_ok=True)


def _about(served: _Served, predictor: TablePredictor) -> dict[str, Any]:
    target = predictor.spec.target
    return {
        "inputs": {name: _input(column) for name, column in served.features.columns.items()},
        "outputs": predictor.output_names,
        "label": target.column,
        "classes": None if target.task == "regression" else list(target.classes),
    }


def _input(column: Column) -> dict[str, Any]:
    about = {
        "dtype": column.dtype.name,
        "shape": ["rows", "longest"] if column.many else ["rows"],
        "missing": "NaN" if column.dtype.is_floating else column.missing,
    }
    return {**about, "counts": column.counts} if column.counts else about
