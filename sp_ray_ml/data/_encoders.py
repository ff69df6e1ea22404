"""How fitted preprocessors turn columns into features: one encoder a column, each row on its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.data._columns import (
    Column,
    bad_numbers,
    check_number,
    column_type,
    count_bad,
    numbers,
    show,
    to_categories,
    value_type,
    values_from_json,
)
from sp_ray_ml.data._threads import side_by_side
from sp_ray_ml.data.source import BLOCK_ROWS, as_source
from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Encoder", "encode", "transform"]


class _BadNumbers(Exception):  # noqa: N818  a signal: the caller has the whole column, and counts
    """A block has values that are missing, infinite or too large."""


class Encoder(ABC):
    """Turns one column into features. What a row becomes never depends on other rows.

    Attributes:
        column: The column.
        feature_names: Names of the features; empty if the column cannot be encoded.
    """

    def __init__(self, column: Column, feature_names: Sequence[str]) -> None:
        self.column = column
        self.feature_names = list(feature_names)

    @abstractmethod
    def check(self, kind: pa.DataType) -> None:
        """Refuse a column of this type.

        Raises:
            DataError: It cannot be read, or differs in meaning from the one in the fit.
        """

    @abstractmethod
    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        """Write the features of a block into `out`, float32 [rows, features], which holds zeros."""

    @property
    def codes(self) -> int:
        """How many categories the column has; 0 where it has none. They can be encoded as one column of codes."""
        return 0

    def encode_codes(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        """Write the codes of a block into `out`, float32 [rows]; for a column that has categories."""
        raise NotImplementedError

    @abstractmethod
    def transform(self, values: pa.ChunkedArray) -> dict[str, Any]:
        """The column as it is after the preprocessor, and columns that it adds, by name."""


class _Scalars(Encoder):
    """One value a row."""

    dtype: type[np.generic]

    @abstractmethod
    def fill(self, values: pa.Array, out: NDArray[Any]) -> None:
        """Write a block's values into `out`, [rows]."""

    def transform(self, values: pa.ChunkedArray) -> dict[str, Any]:
        out = np.empty(len(values), self.dtype)
        for start, piece in _pieces(values):
            self.fill(piece, out[start : start + len(piece)])
        return {self.column.name: pa.array(out)}


class Scaled(_Scalars):
    """Numbers as (x - offset) / scale."""

    dtype = np.float32

    def __init__(
        self, column: Column, state: Mapping[str, Any], offset: float, scale: float, missing: str | float
    ) -> None:
        super().__init__(column, [column.name])
        self._unit = state["unit"]
        self._offset, self._scale = float(offset), float(scale) or 1.0
        named = {"error": None, "zero": 0.0, "mean": state["mean"]}
        self._fill = named[missing] if isinstance(missing, str) else float(missing)

    def check(self, kind: pa.DataType) -> None:
        check_number(Column(self.column.name, kind), self._unit)

    def fill(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        found = _finite(values, self._fill)
        with _fits_float32(self.column, found):
            np.divide(found - self._offset, self._scale, out=out, casting="same_kind")

    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        self.fill(values, out[:, 0])


class AsIs(_Scalars):
    """Numbers as they are, NaN where one is missing."""

    dtype = np.float32

    def __init__(self, column: Column, state: Mapping[str, Any]) -> None:
        super().__init__(column, [column.name])
        self._unit = state["unit"]

    def check(self, kind: pa.DataType) -> None:
        check_number(Column(self.column.name, kind), self._unit)

    def fill(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        found = numbers(values)
        if np.isinf(found).any():
            raise _BadNumbers
        with _fits_float32(self.column, found):
            np.copyto(out, found, casting="same_kind")

    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        self.fill(values, out[:, 0])


@contextmanager
def _fits_float32(column: Column, found: NDArray[np.float64]) -> Iterator[None]:
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError:
        raise column.error(
            f"a value as large as {np.abs(found).max():g} gives no 32-bit number",
            "Clip the column in the query",
        ) from None


def _finite(values: pa.Array, fill: float | None) -> NDArray[np.float64]:
    found = numbers(values)
    if np.isfinite(found).all():
        return found
    missing = np.isnan(found)
    if fill is None or np.isinf(found).any():
        raise _BadNumbers
    return np.where(missing, fill, found)


class _OneHot(_Scalars):
    """A code a row, encoded as one-hot."""

    dtype = np.int32

    @property
    def codes(self) -> int:
        return len(self.feature_names)

    def encode_codes(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        codes = np.empty(len(values), np.int32)
        self.fill(values, codes)
        out[:] = codes

    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        codes = np.empty(len(values), np.int32)
        self.fill(values, codes)
        out[np.arange(len(codes)), codes] = 1


class Buckets(_OneHot):
    """Numbers as the bucket that they lie in."""

    def __init__(self, column: Column, state: Mapping[str, Any], missing: str) -> None:
        edges = [float(edge) for edge in state["edges"]]
        ends = ["", *map(show, edges), ""]
        names = [f"{column.name}={a}..{b}" for a, b in pairwise(ends)]
        super().__init__(column, [*names, f"{column.name}=(missing)"] if missing == "bucket" else names)
        self._unit = state["unit"]
        self._edges = np.array(edges, np.float64)
        self._fill = np.nan if missing == "bucket" else None

    def check(self, kind: pa.DataType) -> None:
        check_number(Column(self.column.name, kind), self._unit)

    def fill(self, values: pa.Array, out: NDArray[np.int32]) -> None:
        found = _finite(values, self._fill)
        if len(self._edges) < 64:  # comparing with each edge is ten times as fast as searching among ten
            codes, above = np.zeros(len(found), np.int8), np.empty(len(found), np.bool_)
            for edge in self._edges:
                np.greater_equal(found, edge, out=above)
                np.add(codes, above.view(np.int8), out=codes)
            out[:] = codes
        else:
            out[:] = np.searchsorted(self._edges, found, side="right")
        if self._fill is not None:
            out[np.isnan(found)] = len(self._edges) + 1


class Vocabulary:
    """Values and their places, from 0; -1 for any other value."""

    def __init__(self, column: Column, state: Mapping[str, Any]) -> None:
        self.column = column
        self.type = value_type(state["value_type"])
        self.values = values_from_json(state["values"], self.type)
        self.names = [f"{column.name}={show(value)}" for value in state["values"]]

    @cached_property
    def _places(self) -> dict[Any, int]:
        return {value: place for place, value in enumerate(self.values.to_pylist())}

    @cached_property
    def _as_floats(self) -> pa.Array:
        return self.values.cast(pa.float64(), safe=False)

    def places(self, found: pa.Array) -> NDArray[np.int64]:
        """Where each of the values that `to_categories` gave is."""
        same = found.type == self.type
        if same and len(found) * 16 < len(
            self.values
        ):  # a few rows build no hash table of a large vocabulary
            encoded = found.dictionary_encode()
            known = [self._places.get(value, -1) for value in encoded.dictionary.to_pylist()]
            indices = encoded.indices.fill_null(len(known)).to_numpy()
            return np.asarray(np.array([*known, -1], np.int64)[indices])
        values = self.values if same else self._as_floats
        places = pc.index_in(found, value_set=values)
        return np.asarray(places.fill_null(-1).to_numpy(), np.int64)


class Codes(_OneHot):
    """Categories as codes, 0 for any that is not in the vocabulary."""

    def __init__(self, column: Column, state: Mapping[str, Any]) -> None:
        self._vocabulary = Vocabulary(column, state)
        super().__init__(column, [f"{column.name}=(other)", *self._vocabulary.names])

    def check(self, kind: pa.DataType) -> None:
        to_categories(pa.nulls(0, kind), self._vocabulary.type, self.column)

    def fill(self, values: pa.Array, out: NDArray[np.int32]) -> None:
        found = to_categories(values, self._vocabulary.type, self.column)
        np.add(self._vocabulary.places(found), 1, out=out, casting="same_kind")


class Vectors(Encoder):
    """A fixed number of values a row."""

    def transform(self, values: pa.ChunkedArray) -> dict[str, Any]:
        width = len(self.feature_names)
        out = np.zeros((len(values), width), np.float32)
        for start, piece in _pieces(values):
            self.encode(piece, out[start : start + len(piece)])
        return {self.column.name: pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), width)}


class Filled(Encoder):
    """Values with something in the place of missing ones."""

    def __init__(self, column: Column, state: Mapping[str, Any], indicator: bool) -> None:
        self._type = value_type(state["fill_type"])
        self._fill = values_from_json([state["fill"]], self._type)[0]
        self._indicator = indicator
        self._flag = f"{column.name}_missing"
        self._unit = state.get("unit", "")
        names = [] if pa.types.is_string(self._type) else [column.name]
        super().__init__(column, [*names, self._flag] if indicator and names else names)

    def check(self, kind: pa.DataType) -> None:
        if self._unit:
            check_number(Column(self.column.name, kind), self._unit)
        else:
            to_categories(pa.nulls(0, kind), self._type, self.column)

    def _values(self, values: pa.Array) -> pa.Array:
        """As the fill's type, null where missing."""
        if self._unit:
            found = numbers(values)
            if np.isinf(found).any():
                raise _BadNumbers
            return pa.array(found, mask=np.isnan(found))
        found = to_categories(values, self._type, self.column)
        try:
            return found.cast(self._type)
        except pa.ArrowInvalid:
            raise self.column.error(
                f"values of type {values.type} do not fit {self._type}, which it had in the fit",
                "Cast the column to the type it had in the fit",
            ) from None

    def encode(self, values: pa.Array, out: NDArray[np.float32]) -> None:
        if not self.feature_names:
            raise self.column.error(
                "text that is filled is still text: it gives no feature", "Use kind: categorical"
            )
        found = self._values(values)
        filled = numbers(found.fill_null(self._fill))
        with _fits_float32(self.column, filled):
            out[:, 0] = filled
        if self._indicator:
            out[:, 1] = found.is_null().to_numpy(zero_copy_only=False)

    def transform(self, values: pa.ChunkedArray) -> dict[str, Any]:
        found = pa.chunked_array([self._values(piece) for _, piece in _pieces(values)], self._type)
        flag = {self._flag: found.is_null()} if self._indicator else {}
        return {self.column.name: found.fill_null(self._fill), **flag}


def _pieces(values: pa.ChunkedArray) -> Iterator[tuple[int, pa.Array]]:
    """A column cut small enough for a processor's cache, with the row that each piece begins at."""
    at = 0
    for chunk in values.chunks:
        for start in range(0, len(chunk), BLOCK_ROWS):
            piece = chunk.slice(start, BLOCK_ROWS)
            yield at, piece
            at += len(piece)


def _table(data: Any, encoders: Sequence[Encoder]) -> pa.Table:
    table = data if isinstance(data, pa.Table) else as_source(data).to_arrow()
    for encoder in encoders:
        encoder.check(column_type(table.schema, encoder.column.name, f"column {encoder.column.name}"))
    return table


def _explain(column: Column, values: pa.ChunkedArray) -> DataError:
    return bad_numbers(column, len(values), *count_bad(values))


def width_of(encoder: Encoder, one_hot: bool) -> int:
    """How many columns of the matrix an encoder fills."""
    return 1 if encoder.codes and not one_hot else len(encoder.feature_names)


def encode(encoders: Sequence[Encoder], data: Any, *, one_hot: bool = True) -> NDArray[np.float32]:
    """Features side by side, float32 [rows, width] (see `FittedFeatures.encode`)."""
    table = _table(data, encoders)
    widths = [width_of(encoder, one_hot) for encoder in encoders]
    out = np.zeros((table.num_rows, sum(widths)), np.float32)
    names = list(dict.fromkeys(e.column.name for e in encoders))
    batches = table.select(names).to_batches(max_chunksize=BLOCK_ROWS)
    ends = np.cumsum([batch.num_rows for batch in batches])

    def write(encoder: Encoder, batch: pa.RecordBatch, columns: NDArray[np.float32]) -> None:
        values = batch.column(encoder.column.name)
        try:
            if encoder.codes and not one_hot:
                encoder.encode_codes(values, columns[:, 0])
            else:
                encoder.encode(values, columns)
        except _BadNumbers:
            raise _explain(encoder.column, table[encoder.column.name]) from None

    def fill(number: int) -> None:
        batch, at = batches[number], 0
        rows = out[ends[number] - batch.num_rows : ends[number]]
        for single, some in groupby(zip(encoders, widths, strict=True), lambda pair: pair[1] == 1):
            run = list(some)
            end = at + sum(width for _, width in run)
            if single and len(run) > 1:
                # Each in memory of its own and then turned: a quarter of the time of writing every n-th number.
                turned = np.zeros((len(run), batch.num_rows), np.float32)
                for place, (encoder, _) in enumerate(run):
                    write(encoder, batch, turned[place, :, None])
                np.copyto(rows[:, at:end], turned.T)
            else:
                for encoder, width in run:
                    write(encoder, batch, rows[:, at : at + width])
                    at += width
            at = end

    with side_by_side() as each:
        for _ in each(fill, range(len(batches)), values=table.num_rows * len(encoders)):
            pass
    return out


def transform(encoders: Sequence[Encoder], data: Any) -> pa.Table:
    """The table with columns replaced (see `FittedFeatures.transform`)."""
    table = _table(data, encoders)
    result = table
    done: set[str] = set()

    def columns_of(encoder: Encoder) -> dict[str, Any]:
        values = table[encoder.column.name]
        try:
            return encoder.transform(values)
        except _BadNumbers:
            raise _explain(encoder.column, values) from None

    with side_by_side() as each:
        found = list(each(columns_of, encoders, values=table.num_rows * len(encoders)))
    for encoder, columns in zip(encoders, found, strict=True):
        name = encoder.column.name
        for new, values in columns.items():
            if new in done or (new != name and new in table.column_names):
                raise encoder.column.error(
                    f"two preprocessors would write the column {new!r}",
                    "Transform one after the other, or use encode, which gives both side by side",
                )
            done.add(new)
            place = result.schema.get_field_index(new)
            result = result.append_column(new, values) if place < 0 else result.set_column(place, new, values)
    metadata = {k: v for k, v in (table.schema.metadata or {}).items() if k != b"pandas"}
    return result.replace_schema_metadata(metadata or None)
