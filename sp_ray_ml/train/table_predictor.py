"""`TablePredictor`: a sealed model that predicts a label from the other columns of a table, whatever the framework.

    manifest.json            kind, versions, schemas, label, metrics, config, and the SHA-256 of every other file
    preprocessors.json       fitted state
    …                        the model, in its framework's own safe format

`TableModel` is what a framework gives: numbers in, numbers out, and the files to keep it in.
"""

from __future__ import annotations

import importlib.metadata
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from sp_ray_ml._import_path import import_object
from sp_ray_ml.config import near_match
from sp_ray_ml.data._columns import is_text, plain_type
from sp_ray_ml.data.preprocessors import FittedFeatures
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.errors import CheckpointError, ColumnNotFoundError, DataError
from sp_ray_ml.metrics.supervised import ClassificationMetrics, RegressionMetrics, SupervisedMetrics
from sp_ray_ml.storage import new_folder, read_json, write_json
from sp_ray_ml.train._table_spec import TableSpec, Target
from sp_ray_ml.train.predictor import Predictor, no_graph, seal_folder

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BATCH_ROWS", "TableModel", "TablePredictor", "metrics_of", "padded_scores"]

BATCH_ROWS = 1_024
"""Rows of the one size of batch that neural networks predict in; what is missing is filled up with zeros."""

_BUILT_IN = {
    "torch": "sp_ray_ml.train._torch_model:TorchModel",
    "tensorflow": "sp_ray_ml.train._keras_model:KerasModel",
    "xgboost": "sp_ray_ml.train._xgboost_model:XGBoostModel",
}
_GROUP = "sp_ray_ml.table_model"
_defined: dict[str, type[TableModel]] = {}


class TableModel(ABC):
    """A trained model of some framework: rows of numbers in, scores out.

    A subclass sets `kind`; from then on predictors of this kind can be opened. An installed package names its class
    by an entry point in the group `sp_ray_ml.table_model`, so that it needs no import.

    Attributes:
        kind: What the manifest calls the framework.
        batch_rows: Rows of the one size of batch that `scores` is given; None where a row's scores never depend on
            the batch that it comes in.
    """

    kind: ClassVar[str]
    batch_rows: ClassVar[int | None] = BATCH_ROWS

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            _defined[cls.kind] = cls

    @abstractmethod
    def scores(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the model says about some rows.

        Args:
            x: float32 [rows, width].

        Returns:
            float32 [rows, 1] values of a regression, or [rows, classes] probabilities that add up to 1.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model's files, in a format that needs no pickle."""

    def about(self) -> Mapping[str, Any]:
        """What `open` needs beside the files, as plain data."""
        return {}

    @classmethod
    @abstractmethod
    def open(cls, folder: Path, spec: TableSpec, about: Mapping[str, Any]) -> TableModel:
        """Open what `save` wrote. The files are as they were written.

        Raises:
            CheckpointError: They do not hold such a model.
        """


def _model_class(kind: str, where: str) -> type[TableModel]:
    """The class of a kind. A manifest never names what is imported: only what is installed or defined counts."""
    if kind in _BUILT_IN:
        cls: type[TableModel] = import_object(_BUILT_IN[kind])
        return cls
    if kind in _defined:
        return _defined[kind]
    for point in importlib.metadata.entry_points(group=_GROUP, name=kind):
        return point.load()  # type: ignore[no-any-return]
    known = [*_BUILT_IN, *_defined]
    raise CheckpointError(
        f"holds a model of kind {kind!r}{near_match(kind, known)} (known: {', '.join(dict.fromkeys(known))})",
        where=where,
        hint="Import the module that defines it first, or install the package that brings it",
    )


def padded_scores(model: TableModel, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """A model's scores of rows, computed in batches of its one size; float32 [rows, outputs]."""
    size = model.batch_rows
    if size is None:
        return model.scores(x)
    parts = []
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        if len(rows) < size:
            rows = np.concatenate([rows, np.zeros((size - len(rows), x.shape[1]), np.float32)])
        parts.append(model.scores(np.ascontiguousarray(rows))[: len(x) - start])
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def metrics_of(target: Target) -> SupervisedMetrics:
    """What measures predictions of this label."""
    return RegressionMetrics() if target.task == "regression" else ClassificationMetrics(len(target.classes))


class TablePredictor(Predictor):
    """Predicts a label from the other columns of a table.

    Attributes:
        spec: How rows become numbers, and what the numbers mean.
        model: The trained model.
    """

    kind = "table"
    _files = ("preprocessors.json",)

    def __init__(self, spec: TableSpec, model: TableModel, manifest: Mapping[str, Any] | None = None) -> None:
        super().__init__(manifest or {})
        self.spec, self.model = spec, model

    def __repr__(self) -> str:
        target = self.spec.target
        return f"TablePredictor({self.model.kind}, {target.task} of {target.column!r}, {self.spec.width} features)"

    @property
    def output_names(self) -> list[str]:
        """The columns that `predict` adds."""
        return [field.name for field in self._outputs]

    @property
    def _outputs(self) -> list[pa.Field]:
        target = self.spec.target
        if target.task == "regression":
            return [pa.field("prediction", pa.float32())]
        two = len(target.classes) == 2
        shares = (
            pa.field("probability", pa.float32())
            if two
            else pa.field("probabilities", pa.list_(pa.float32()))
        )
        return [pa.field("prediction", target.values.type), shares]

    def scores(self, table: Any) -> NDArray[np.float32]:
        """float32 [rows, outputs]: a value, or the probability of each class in the order of `spec.target.classes`.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in training, or a value that its preprocessor refuses.
        """
        return self.infer(self.prepare(table))

    def prepare(self, rows: Any) -> list[NDArray[np.float32]]:
        """The rows as numbers, float32 [rows, width], a block at a time.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in training, or a value that its preprocessor refuses.
        """
        source = as_source(rows, "table")
        self._check(source.schema, source.name)
        return [self.spec.encode(block) for block in self._blocks(source)]

    def infer(self, prepared: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The scores of what `prepare` gave; as `scores`."""
        parts = [padded_scores(self.model, block) for block in prepared]
        return np.concatenate(parts) if parts else np.empty((0, self.spec.target.outputs), np.float32)

    def assemble(self, rows: pa.Table, found: NDArray[np.float32]) -> pa.Table:
        """The rows with the columns that their scores make; as `predict`."""
        if taken := [name for name in self.output_names if name in rows.column_names]:
            raise DataError(f"the table has a column {taken[0]!r} already", where="table", hint="Rename it")
        for field, values in zip(self._outputs, self._columns(found), strict=True):
            rows = rows.append_column(field, values)
        return rows

    def _blocks(self, source: Source) -> Iterator[pa.RecordBatch]:
        return source.select(self.spec.features.columns).blocks()

    def predict(self, table: Any) -> pa.Table:
        """Predict for the rows of a table.

        Args:
            table: A `pyarrow.Table`, or whatever `as_source` takes; read as a whole.

        Returns:
            The table with the columns that the model does not know as they are, and two more. `prediction`: the
            value (float32), or the most probable class in the label's type. For two classes `probability`, that of
            the second one; for more `probabilities`, a list in the order of the classes.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in training, a value that its preprocessor refuses, or the
                name of a prediction.
        """
        rows = table if isinstance(table, pa.Table) else as_source(table, "table").to_arrow()
        return self.assemble(rows, self.infer(self.prepare(rows)))

    def _columns(self, scores: NDArray[np.float32]) -> list[pa.Array]:
        target = self.spec.target
        if target.task == "regression":
            return [pa.array(np.ascontiguousarray(scores[:, 0]))]
        best = target.values.take(pa.array(scores.argmax(axis=1)))
        if len(target.classes) == 2:
            return [best, pa.array(np.ascontiguousarray(scores[:, 1]))]
        offsets = np.arange(len(scores) + 1, dtype=np.int32) * scores.shape[1]
        return [
            best,
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(scores).reshape(-1))),
        ]

    def evaluate(self, data: Any) -> dict[str, float]:
        """The metrics on rows that have the label.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: No rows, a label that is missing or unknown, or as in `predict`.
        """
        source, target = as_source(data, "table"), self.spec.target
        self._check(source.schema, source.name)
        if target.column not in source.schema.names:
            raise ColumnNotFoundError(f"the table has no label {target.column!r}", where=source.name)
        metrics = metrics_of(target)
        columns = list(dict.fromkeys([*self.spec.features.columns, target.column]))
        for _, scores, truth in self.scored(source.select(columns)):
            metrics.update(scores, truth)
        return metrics.finish()

    def scored(self, source: Source) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float32], NDArray[Any]]]:
        """Blocks of rows that have the label, with the model's scores [rows, outputs] and the true values [rows]."""
        target = self.spec.target
        for block in source.blocks():
            truth = target.encode(block.column(target.column), f"{source.name}.{target.column}")
            yield block, padded_scores(self.model, self.spec.encode(block)), truth

    def _check(self, schema: pa.Schema, where: str) -> None:
        for name, kind in self.spec.schema.items():
            if name not in schema.names:
                raise ColumnNotFoundError(
                    f"the table has no column {name!r}, which the model reads{near_match(name, schema.names)}",
                    where=where,
                    hint=f"It reads: {', '.join(self.spec.schema)}",
                )
            found = plain_type(schema.field(name).type)
            if is_text(found) != (kind in {"string", "large_string", "string_view"}):
                raise DataError(
                    f"the column is {found}, in training it was {kind}",
                    where=f"{where}.{name}",
                    hint="Cast it to the type it had in training",
                )

    def mlflow_signature(self) -> dict[str, list[dict[str, Any]]]:
        """Input and output columns in MLflow's own form."""
        inputs = [_mlflow_column(name, _arrow_type(kind)) for name, kind in self.spec.schema.items()]
        return {"inputs": inputs, "outputs": [_mlflow_column(f.name, f.type) for f in self._outputs]}

    def save(self, path: str | os.PathLike[str], *, about: Mapping[str, Any] | None = None) -> None:
        """Seal into a folder that appears whole.

        Args:
            path: The folder.
            about: More for the manifest: metrics, config, versions.

        Raises:
            StorageError: It could not be written; what was there is untouched.
        """
        with new_folder(path) as folder:
            write_json(folder / "preprocessors.json", self.spec.features.to_json())
            self.model.save(folder)
            seal_folder(
                folder,
                {
                    "kind": self.kind,
                    "model": {"kind": self.model.kind, **self.model.about()},
                    "table": self.spec.to_json(),
                    "input_schema": dict(self.spec.schema),
                    "output_schema": {field.name: str(field.type) for field in self._outputs},
                    **(about or {}),
                },
            )

    def export_saved_model(self, path: str | os.PathLike[str]) -> None:
        """Write a TensorFlow SavedModel, preprocessing included, that answers as `predict` without this package.

        Its signature `serving_default` takes each column that the model reads as a tensor [rows], by name: text as
        string, whole numbers as int64 (uint64 for those), booleans as int8, floats in their type (decimals float64),
        dates as int64 days and times as int64 of their unit since 1970 (UTC), lists as [rows, longest]. It gives
        `prediction`, and `probability` or `probabilities`. In Python, `tf.saved_model.load(path).predict(columns)`
        takes them as one dict, whatever the columns' names.

        A tensor knows no null. What is missing is NaN in floats, the smallest number in int64 (as NumPy's NaT), the
        largest in uint64, -1 in booleans and the empty text in strings; where training saw the empty text as a
        category, `(missing)`. `assets.extra/columns.json` in the folder says it for each column.

        Args:
            path: The folder; it appears whole, in place of what was there.

        Raises:
            ConfigError: The model is none of Keras, or a preprocessor cannot be written in the graph.
            StorageError: It could not be written.
        """
        if self.model.kind != "tensorflow":
            raise no_graph(self.model.kind)
        from sp_ray_ml.train._keras_export import export

        export(self, path)

    @classmethod
    def _open(cls, folder: Path, manifest: dict[str, Any]) -> TablePredictor:
        features = FittedFeatures.from_json(read_json(folder / "preprocessors.json"))
        spec = TableSpec.from_json(manifest["table"], features)
        about = dict(manifest["model"])
        model = _model_class(str(about["kind"]), str(folder))
        return cls(spec, model.open(folder, spec, about), manifest)


def _arrow_type(name: str) -> pa.DataType:
    """The type of a schema's text; what has parameters counts as what it is nearest to."""
    head = name.partition("[")[0].partition("(")[0]
    if head in {"timestamp", "date32", "date64"}:
        return pa.timestamp("us")
    if head.startswith("decimal"):
        return pa.float64()
    return pa.type_for_alias(head)


def _mlflow_column(name: str, kind: pa.DataType) -> dict[str, Any]:
    checks: list[tuple[Callable[[pa.DataType], bool], str]] = [
        (pa.types.is_boolean, "boolean"),
        (lambda t: pa.types.is_integer(t) and t.bit_width <= 16, "integer"),
        (lambda t: pa.types.is_int32(t), "integer"),
        (pa.types.is_integer, "long"),
        (lambda t: pa.types.is_float16(t) or pa.types.is_float32(t), "float"),
        (pa.types.is_floating, "double"),
        (pa.types.is_timestamp, "datetime"),
    ]
    if pa.types.is_list(kind):
        return {"name": name, "type": "array", "items": {"type": "float"}}
    return {"name": name, "type": next((mlflow for check, mlflow in checks if check(kind)), "string")}
