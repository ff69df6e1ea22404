"""How rows of a table become numbers, and what the numbers that come out mean; kept with a sealed model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data._columns import numbers, plain
from sp_ray_ml.data.preprocessors import FittedFeatures
from sp_ray_ml.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["TableSpec", "Target", "Task"]

Task = Literal["regression", "classification"]


@dataclass(frozen=True)
class Target:
    """What is predicted.

    Attributes:
        column: The label's column.
        type: Its Arrow type, as text.
        task: `regression` or `classification`.
        classes: For a classification, the label's values in rising order; a class is a position in them.
        weights: How much a row of each class counts.
    """

    column: str
    type: str
    task: Task
    classes: Sequence[Any] = ()
    weights: Sequence[float] | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for a row: one, or a probability for each class."""
        return 1 if self.task == "regression" else len(self.classes)

    @cached_property
    def values(self) -> pa.Array:
        """The classes as an Arrow array."""
        kind = pa.string() if self.type == "string" else pa.type_for_alias(self.type)
        return pa.array(self.classes, kind)

    def encode(self, label: pa.Array, where: str) -> NDArray[Any]:
        """The label as numbers, [rows]: float32, or int64 classes.

        Raises:
            DataError: A label is missing, no number, or a class that training has not seen.
        """
        label = plain(label)
        if label.null_count:
            raise DataError(f"{label.null_count} of {len(label)} rows have no label", where=where)
        if self.task == "regression":
            values = numbers(label)
            if not np.isfinite(values).all():
                raise DataError(
                    f"{int((~np.isfinite(values)).sum())} of {len(label)} labels are not finite", where=where
                )
            return values.astype(np.float32)
        found = pc.index_in(label.cast(self.values.type), self.values)
        if found.null_count:
            strange = pc.unique(label.filter(pc.is_null(found))).to_pylist()
            raise DataError(
                f"{found.null_count} rows have a label that training has not seen, such as {strange[0]!r}",
                where=where,
                hint=f"Known are: {', '.join(map(str, self.classes[:10]))}",
            )
        return np.asarray(found.to_numpy(), np.int64)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "column": self.column,
            "type": self.type,
            "task": self.task,
            "classes": list(self.classes),
            "weights": None if self.weights is None else list(self.weights),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Target:
        """What `to_json` gave, back again."""
        if data["task"] not in {"regression", "classification"}:
            raise CheckpointError(f"an unknown task {data['task']!r}")
        return cls(data["column"], data["type"], data["task"], tuple(data["classes"]), data["weights"])


@dataclass(frozen=True)
class TableSpec:
    """How rows become numbers, and what the numbers that come out mean.

    Attributes:
        features: The fitted preprocessors.
        target: What is predicted.
        schema: Arrow type, as text, of each column that is read.
        one_hot: Whether a category is a one among zeros; otherwise it is one column with the code.
    """

    features: FittedFeatures
    target: Target
    schema: Mapping[str, str]
    one_hot: bool

    @cached_property
    def names(self) -> list[str]:
        """Names of the columns of the matrix."""
        return self.features.names(one_hot=self.one_hot)

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return len(self.names)

    @cached_property
    def cardinalities(self) -> dict[int, int]:
        """Columns of the matrix that hold codes, and how many codes there are (0 is for all others)."""
        return {} if self.one_hot else self.features.cardinalities()

    def encode(self, rows: pa.Table | pa.RecordBatch) -> NDArray[np.float32]:
        """float32 [rows, width].

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: A column has another type than in training, or values that its preprocessor refuses.
        """
        return self.features.encode(rows, one_hot=self.one_hot)

    def to_json(self) -> dict[str, Any]:
        """As plain data, without the features."""
        return {"target": self.target.to_json(), "schema": dict(self.schema), "one_hot": self.one_hot}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], features: FittedFeatures) -> TableSpec:
        """What `to_json` gave, back again."""
        return cls(features, Target.from_json(data["target"]), dict(data["schema"]), bool(data["one_hot"]))
