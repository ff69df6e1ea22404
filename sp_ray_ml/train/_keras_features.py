"""Fitted preprocessors as TensorFlow's graph: the features that `FittedFeatures.encode` gives, to the same bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sp_ray_ml.data._encoders import AsIs, Buckets, Codes, Encoder, Filled, Scaled, Vocabulary
from sp_ray_ml.data._token_encoders import Hashes, Tokens
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.train._keras import tf
from sp_ray_ml.train._keras_columns import Column

if TYPE_CHECKING:
    from sp_ray_ml.train._table_spec import TableSpec

__all__ = ["Features"]

# What `pyarrow.compute.utf8_trim_whitespace` takes away, which is more than `tf.strings.strip` does.
_SPACE = r"[\t-\r\x1c-\x1f \x{85}\p{Z}]"
_AROUND = f"^{_SPACE}+|{_SPACE}+$"


class _Part(tf.Module):  # type: ignore[misc]
    """The graph of one encoder. Numbers are variables: the graph's optimizer would turn `x / c` into `x · (1 / c)`.

    Args:
        encoder: The fitted one.
        column: How its column comes.
    """

    def __init__(self, encoder: Any, column: Column) -> None:
        super().__init__()
        self.width, self.codes = len(encoder.feature_names), encoder.codes
        self._column = column
        self._per_second = self._number(column.per_second)

    def _number(self, value: Any) -> Any:
        return tf.Variable(np.asarray(value, np.float64), trainable=False)

    def _numbers(self, values: Any) -> Any:
        """As `numbers` of the data layer: float64 [rows], NaN where a value is missing; none infinite."""
        found = tf.cast(values, tf.float64)
        if self._column.per_second > 1:
            found /= self._per_second
        found = tf.where(self._column.is_missing(values), tf.constant(math.nan, tf.float64), found)
        return self._checked(found, ~tf.math.is_inf(found), "has infinite values")

    def _filled(self, values: Any, fill: float | None) -> Any:
        found = self._numbers(values)
        if fill is None:
            return self._checked(found, ~tf.math.is_nan(found), "has missing values, which training refused")
        return tf.where(tf.math.is_nan(found), tf.constant(fill, tf.float64), found)

    def _feature(self, values: Any) -> Any:
        """float64 [rows] as float32 [rows, 1]."""
        found = tf.cast(values, tf.float32)
        return self._checked(found, ~tf.math.is_inf(found), "has values that give no 32-bit number")[:, None]

    def _checked(self, values: Any, good: Any, what: str) -> Any:
        """The values, once it is known that they are good."""
        told = tf.debugging.Assert(tf.reduce_all(good), [f"the column {self._column.name!r} {what}"])
        with tf.control_dependencies([told]):
            return tf.identity(values)


class _Scaled(_Part):
    def __init__(self, encoder: Scaled, column: Column) -> None:
        super().__init__(encoder, column)
        self._offset, self._scale = self._number(encoder._offset), self._number(encoder._scale)
        self._fill = encoder._fill

    def __call__(self, values: Any) -> Any:
        return self._feature((self._filled(values, self._fill) - self._offset) / self._scale)


class _AsIs(_Part):
    def __call__(self, values: Any) -> Any:
        return self._feature(self._numbers(values))


class _Buckets(_Part):
    def __init__(self, encoder: Buckets, column: Column) -> None:
        super().__init__(encoder, column)
        self._edges, self._own = tf.constant(encoder._edges, tf.float64), encoder._fill is not None

    def __call__(self, values: Any) -> Any:
        found = self._filled(values, math.nan if self._own else None)
        codes = (
            tf.searchsorted(self._edges, found, side="right") if len(self._edges) else tf.zeros_like(found)
        )
        codes = tf.cast(codes, tf.int64)
        return tf.where(tf.math.is_nan(found), tf.cast(len(self._edges) + 1, tf.int64), codes)


class _Places(_Part):
    """Values and their places in a vocabulary, -1 for any other."""

    def __init__(self, encoder: Any, column: Column) -> None:
        super().__init__(encoder, column)
        vocabulary: Vocabulary = encoder._vocabulary
        own, kept = column.category, vocabulary.type
        numeric = {pa.int64(), pa.uint64(), pa.float64()}
        if own != kept and not pa.types.is_null(kept) and not {own, kept} <= numeric:
            raise ConfigError(f"holds {own}, its categories are {kept}", where=f"column {column.name}")
        # Numbers of different types are compared as floats, by their bits: a table has no keys of 64-bit floats.
        self._floats = own != kept or pa.types.is_float64(own)
        keys: Any = vocabulary.values
        self._table = None
        if pa.types.is_null(kept) or not len(keys):
            return
        if pa.types.is_string(kept):
            keys = keys.to_pylist()
        elif self._floats:
            keys = (keys.cast(pa.float64(), safe=False).to_numpy() + 0.0).view(np.int64)
        else:
            kind = pa.int32() if pa.types.is_date(kept) else pa.int64() if pa.types.is_boolean(kept) else kept
            keys = keys.cast(kind).to_numpy(zero_copy_only=False)
            keys = keys.view(np.int64) if keys.dtype == np.uint64 else keys.astype(np.int64)
        dtype = tf.string if pa.types.is_string(kept) else tf.int64
        places = tf.range(len(keys), dtype=tf.int64)
        initial = tf.lookup.KeyValueTensorInitializer(tf.constant(keys, dtype), places)
        self._table = tf.lookup.StaticHashTable(initial, -1)

    def _places(self, values: Any) -> Any:
        if self._table is None:
            return -tf.ones_like(values, tf.int64)
        if self._column.dtype == tf.string:
            return self._table.lookup(values)  # what is missing is in no vocabulary, or a category of its own
        missing = self._column.is_missing(values)
        if self._floats:
            found = tf.cast(values, tf.float64)
            found = self._checked(found, ~tf.math.is_inf(found), "has infinite values")
            values = tf.bitcast(
                tf.where(tf.equal(found, 0), tf.zeros_like(found), found), tf.int64
            )  # -0.0 is 0.0
        elif self._column.dtype == tf.uint64:
            values = tf.bitcast(values, tf.int64)
        places = self._table.lookup(tf.cast(values, tf.int64))
        return tf.where(missing, -tf.ones_like(places), places)


class _Codes(_Places):
    def __call__(self, values: Any) -> Any:
        return self._places(values) + 1


class _Tokens(_Places):
    def __init__(self, encoder: Tokens, column: Column) -> None:
        super().__init__(encoder, column)
        self._separator = encoder._separator

    def __call__(self, values: Any) -> Any:
        rows = tf.shape(values, out_type=tf.int64)[0]
        if self._column.many:
            row = tf.repeat(tf.range(rows), tf.shape(values)[1])
            found = tf.reshape(values, [-1])
        else:
            tokens = tf.strings.split(values, self._separator)
            row, found = tokens.value_rowids(), tokens.values
        if self._column.dtype == tf.string:
            found = tf.strings.regex_replace(found, _AROUND, "")
        place = self._places(found)
        where = tf.boolean_mask(tf.stack([row, place], axis=1), place >= 0)
        zeros = tf.zeros(tf.stack([rows, self.width]), tf.float32)
        return tf.tensor_scatter_nd_max(zeros, where, tf.ones(tf.shape(where)[0]))


class _Filled(_Part):
    def __init__(self, encoder: Filled, column: Column) -> None:
        super().__init__(encoder, column)
        if not encoder._unit and encoder._type != column.category:
            raise ConfigError(
                f"holds {column.category}, and is filled with {encoder._type}", where=f"column {column.name}"
            )
        fill = encoder._fill.cast(pa.int32()) if pa.types.is_date(encoder._type) else encoder._fill
        self._fill, self._indicator = float(fill.as_py()), encoder._indicator

    def __call__(self, values: Any) -> Any:
        found = self._numbers(values)
        missing = tf.math.is_nan(found)
        filled = self._feature(tf.where(missing, tf.constant(self._fill, tf.float64), found))
        return tf.concat([filled, tf.cast(missing, tf.float32)[:, None]], 1) if self._indicator else filled


_PARTS: dict[type[Encoder], Callable[[Any, Column], Any]] = {
    Scaled: _Scaled,
    AsIs: _AsIs,
    Buckets: _Buckets,
    Codes: _Codes,
    Tokens: _Tokens,
    Filled: _Filled,
}


class Features(tf.Module):  # type: ignore[misc]
    """All features of a table, from its raw columns.

    Args:
        spec: How rows become numbers.

    Attributes:
        columns: The columns, by name.

    Raises:
        ConfigError: A preprocessor or a type cannot be written in the graph.
    """

    def __init__(self, spec: TableSpec) -> None:
        super().__init__()
        encoders = [encoder for fitted in spec.features.features for encoder in fitted.encoders]
        self.columns = {
            name: _told_apart(Column.of(name, kind), [e for e in encoders if e.column.name == name])
            for name, kind in spec.schema.items()
        }
        self._one_hot = spec.one_hot
        self._parts = [(e.column.name, _part(e, self.columns[e.column.name])) for e in encoders]

    def __call__(self, columns: Any) -> Any:
        """float32 [rows, width]."""
        found = []
        for name, part in self._parts:
            values = part(columns[name])
            if part.codes and not self._one_hot:
                values = tf.cast(values, tf.float32)[:, None]
            elif part.codes:
                values = tf.one_hot(values, part.codes)
            found.append(values)
        return tf.concat(found, axis=1)


def _told_apart(column: Column, encoders: list[Encoder]) -> Column:
    """The column with a text for what is missing that means nothing else: empty text may be a category of its own."""
    if column.dtype != tf.string or column.many:
        return column
    text = ""
    while any(not _means_missing(text, encoder) for encoder in encoders):
        text = f"{text or '(missing'})"
    return replace(column, missing=text)


def _means_missing(text: str, encoder: Encoder) -> bool:
    features = np.zeros((2, len(encoder.feature_names)), np.float32)
    encoder.encode(pa.array([text, None], pa.string()), features)
    return bool((features[0] == features[1]).all())


def _part(encoder: Encoder, column: Column) -> Any:
    if type(encoder) not in _PARTS:
        kind = "hash_text" if isinstance(encoder, Hashes) else type(encoder).__name__
        raise ConfigError(
            f"{kind} cannot be written in TensorFlow's graph"
            + (": it has no BLAKE2b" if isinstance(encoder, Hashes) else ""),
            where=f"column {column.name}",
            hint="Train with multi_hot or categorical for this column, or serve the predictor itself: "
            "mlflow models serve, or Predictor.load",
        )
    return _PARTS[type(encoder)](encoder, column)
