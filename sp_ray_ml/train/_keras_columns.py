"""How raw columns come as tensors, which know no null."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train._keras import tf

__all__ = ["Column"]

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
_TIME = re.compile(r"(timestamp|duration)\[(s|ms|us|ns)\b")
_LIST = re.compile(r"(?:large_|fixed_size_)?list<[^:]*: (.+?)(?: not null)?>(?:\[\d+\])?")


@dataclass(frozen=True)
class Column:
    """How a raw column comes as a tensor.

    Attributes:
        name: Its name.
        type: Its Arrow type in training, as text; of a list, that of its values.
        dtype: The tensor's type.
        missing: What stands for a missing value: NaN, a number, or a text that is no category, mostly the empty one.
        counts: What its numbers count.
        per_second: How many of them make a second, for times.
        many: Whether a row has a list of values: the tensor is [rows, longest list], filled up with `missing`.
    """

    name: str
    type: str
    dtype: Any
    missing: float | str
    counts: str = ""
    per_second: int = 1
    many: bool = False

    @classmethod
    def of(cls, name: str, kind: str) -> Column:
        """The column of a schema.

        Raises:
            ConfigError: It has a type that no tensor has.
        """
        if found := _LIST.fullmatch(kind):
            inner = cls.of(name, found[1])
            return cls(name, inner.type, inner.dtype, inner.missing, inner.counts, many=True)
        if kind in {"string", "large_string", "string_view"}:
            return cls(name, kind, tf.string, "")
        if kind == "bool":
            return cls(name, kind, tf.int8, -1, "0 or 1")
        if kind == "uint64":
            return cls(name, kind, tf.uint64, _LARGEST)
        if re.fullmatch(r"u?int\d+", kind):
            return cls(name, kind, tf.int64, _SMALLEST)
        if kind in {"halffloat", "float"}:
            return cls(name, kind, tf.float32, math.nan)
        if kind == "double" or kind.startswith("decimal"):
            return cls(name, kind, tf.float64, math.nan)
        if kind.startswith("date"):
            return cls(name, "date32", tf.int64, _SMALLEST, "days since 1970")
        if found := _TIME.match(kind):
            since = " since 1970 (UTC)" if found[1] == "timestamp" else ""
            return cls(name, kind, tf.int64, _SMALLEST, f"{found[2]}{since}", _PER_SECOND[found[2]])
        raise ConfigError(
            f"columns of type {kind} do not come as a tensor",
            where=f"column {name}",
            hint="Train without it, or with the column cast in the query",
        )

    @property
    def spec(self) -> Any:
        """The tensor that is taken."""
        return tf.TensorSpec([None, None] if self.many else [None], self.dtype)

    @property
    def category(self) -> pa.DataType:
        """The Arrow type that its categories are kept in (as `category_type` of the data layer)."""
        if self.dtype == tf.string:
            return pa.string()
        if self.dtype.is_floating:
            return pa.float64()
        exact = {"bool": pa.bool_(), "uint64": pa.uint64(), "date32": pa.date32()}
        return exact.get(self.type, pa.int64())

    def is_missing(self, values: Any) -> Any:
        """Where a value is missing."""
        if self.dtype.is_floating:
            return tf.math.is_nan(values)
        return tf.equal(values, tf.constant(self.missing, self.dtype))
