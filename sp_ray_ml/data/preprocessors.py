"""How columns become numbers: the settings of each preprocessor, and what fitting one gives.

    fitted = Standardize(columns=["age"], missing="mean").fit(table)
    fitted.encode(table)                              # float32 [rows, width]
    Fitted.from_json(fitted.to_json()).encode(table)  # the same to the last bit

Importing this module imports no heavy library. A preprocessor of your own subclasses `Preprocessor` and gives
each of its columns an `Accumulator` (looks at all rows) and an `Encoder` (turns values into features).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import pydantic
from pydantic_core import PydanticCustomError

from sp_ray_ml.config import Family, Settings
from sp_ray_ml.data._fitted import Fitted, FittedFeatures, fit, fit_features

if TYPE_CHECKING:
    from sp_ray_ml.data._columns import Column
    from sp_ray_ml.data._encoders import Encoder
    from sp_ray_ml.data._preprocessing import Accumulator
    from sp_ray_ml.data._ray_preprocessors import RayPreprocessor

__all__ = [
    "Bucketize",
    "Categorical",
    "Fitted",
    "FittedFeatures",
    "HashText",
    "MinMax",
    "Missing",
    "MultiHot",
    "Numeric",
    "Preprocessor",
    "PreprocessorField",
    "Standardize",
    "fit_features",
]

FAMILY: Final = Family(
    "preprocessor",
    {
        "numeric": "sp_ray_ml.data.preprocessors:Numeric",
        "standardize": "sp_ray_ml.data.preprocessors:Standardize",
        "min_max": "sp_ray_ml.data.preprocessors:MinMax",
        "categorical": "sp_ray_ml.data.preprocessors:Categorical",
        "bucketize": "sp_ray_ml.data.preprocessors:Bucketize",
        "multi_hot": "sp_ray_ml.data.preprocessors:MultiHot",
        "hash_text": "sp_ray_ml.data.preprocessors:HashText",
        "missing": "sp_ray_ml.data.preprocessors:Missing",
    },
)


def _check_fill(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if number or value in ("error", "mean", "zero"):
        return value
    raise PydanticCustomError("fill", "must be error, mean, zero or a finite number")


def _check_columns(columns: list[str]) -> list[str]:
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"{doubled[0]!r} is written twice: keep one")
    return columns


_Fill = Annotated[Literal["error", "mean", "zero"] | float, pydantic.BeforeValidator(_check_fill)]


class Preprocessor(Settings):
    """Base of all preprocessors: the columns, each treated on its own."""

    columns: Annotated[list[str], pydantic.Field(min_length=1), pydantic.AfterValidator(_check_columns)]
    """Columns of the table."""

    def fit(self, data: Any) -> Fitted:
        """Look at all rows.

        Args:
            data: Whatever `as_source` takes: a `Source`, a `pyarrow.Table`, a `ray.data.Dataset`, a path.

        Raises:
            ColumnNotFoundError: A column is not there.
            DataError: No rows, a column of a type that this preprocessor does not read, or values that the
                settings do not allow (missing, infinite).
        """
        return fit([self], data).features[0]

    def to_ray(self) -> RayPreprocessor:
        """The same as a Ray `Preprocessor`, not fitted, that chains with Ray's own."""
        from sp_ray_ml.data._ray_preprocessors import to_ray

        return to_ray(self)

    def accumulator(self, column: Column) -> Accumulator:
        """What looks at all rows of one column; its `finish` gives that column's state."""
        raise TypeError(f"{type(self).__name__} has no accumulator for {column.name}: override `accumulator`")

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:  # noqa: ARG002
        """What turns one column into features, from the state that its accumulator gave."""
        raise TypeError(f"{type(self).__name__} has no encoder for {column.name}: override `encoder`")


class Numeric(Preprocessor):
    """Numbers as they are, and missing ones (null or NaN) stay NaN: for models that know what to do with them.

    Booleans count as 0 and 1, dates as days and timestamps as seconds since 1970 (UTC).
    """

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._preprocessing import Range

        return Range(column)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._encoders import AsIs

        return AsIs(column, state)


class Standardize(Preprocessor):
    """Numbers to zero mean and unit (population) deviation; a constant column becomes 0.

    Booleans count as 0 and 1, dates as days and timestamps as seconds since 1970 (UTC).
    """

    missing: _Fill = "error"
    """What stands in for a missing value (null or NaN), in the column's unit: `mean`, `zero` or a number."""

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._preprocessing import Moments

        return Moments(column, self.missing)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._encoders import Scaled

        return Scaled(column, state, state["mean"], state["std"], self.missing)


class MinMax(Preprocessor):
    """Numbers to 0 at the smallest value seen and 1 at the largest; a constant column becomes 0.

    Values outside the range seen go below 0 or above 1. Booleans, dates and timestamps as in `standardize`.
    """

    missing: _Fill = "error"
    """What stands in for a missing value (null or NaN), in the column's unit: `mean`, `zero` or a number."""

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._preprocessing import Moments

        return Moments(column, self.missing)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._encoders import Scaled

        return Scaled(column, state, state["min"], state["max"] - state["min"], self.missing)


class Categorical(Preprocessor):
    """Each value its own code; rare, unknown and missing values share code 0, named `(other)`.

    Takes text, whole numbers, booleans, dates and numbers. Codes from 1 are in the order of the values.
    """

    min_count: int = pydantic.Field(default=1, ge=1)
    """Values of fewer rows than this are rare."""
    max_values: int | None = pydantic.Field(default=None, ge=1)
    """Only this many values have a code, the most frequent ones (of equal counts the smaller value)."""

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._value_counts import ValueCounts

        return ValueCounts(column, self.min_count, self.max_values)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._encoders import Codes

        return Codes(column, state)


class Bucketize(Preprocessor):
    """Numbers to the bucket they lie in: bucket i has `edges[i-1] <= x < edges[i]`, the outer ones are open."""

    method: Literal["uniform", "quantile", "edges"] = "quantile"
    """Buckets of equal width, of (about) equally many rows, or between given edges."""
    buckets: int = pydantic.Field(10, ge=2)
    """How many, for `uniform` and `quantile`; fewer where quantiles coincide."""
    edges: list[float] | None = None
    """Inner edges in rising order, for `edges`: n of them make n + 1 buckets."""
    missing: Literal["error", "bucket"] = "error"
    """Whether missing values (null or NaN) have a bucket of their own, the last."""

    @pydantic.model_validator(mode="after")
    def _edges_match_method(self) -> Bucketize:
        if (self.method == "edges") != (self.edges is not None):
            raise ValueError("`edges` goes with method: edges, and only with it")
        if self.edges is not None:
            rising = all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False))
            if not self.edges or not rising or not all(map(math.isfinite, self.edges)):
                raise ValueError("`edges` must be finite numbers in rising order, at least one")
        return self

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._preprocessing import GivenEdges, Quantiles, UniformEdges

        if self.edges is not None:
            return GivenEdges(column, self.missing, self.edges)
        return (UniformEdges if self.method == "uniform" else Quantiles)(column, self.missing, self.buckets)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._encoders import Buckets

        return Buckets(column, state, self.missing)


class MultiHot(Preprocessor):
    """Several values in one field, such as `Comedy Drama` or a list: 1 for each one present.

    Values that are rare or were not seen in the fit are left out; a missing field has none.
    """

    separator: str = pydantic.Field(" ", min_length=1)
    """What stands between the values; white space around a value does not count."""
    min_count: int = pydantic.Field(default=1, ge=1)
    """Values of fewer rows than this are rare."""
    max_values: int | None = pydantic.Field(default=None, ge=1)
    """Only this many values have a feature, the most frequent ones (of equal counts the smaller value)."""

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._value_counts import TokenCounts

        return TokenCounts(column, self.min_count, self.max_values, self.separator)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._token_encoders import Tokens

        return Tokens(column, state, self.separator)


class HashText(Preprocessor):
    """Text to counts of its words in a fixed number of buckets, without a vocabulary (feature hashing).

    Words are runs of letters and digits in lower case; a word's bucket is the first 8 bytes (little-endian) of
    its BLAKE2b-64 digest modulo `buckets`, the same on every machine. Missing text has no words.

    Source: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009:
    `phi_i(x) = sum over words w with h(w) = i of xi(w)`, where `xi` is 1, or a hashed sign where `signed`.
    """

    buckets: int = pydantic.Field(256, ge=1)
    """How many features."""
    ngrams: int = pydantic.Field(0, ge=0)
    """0: whole words. n: runs of n letters of each `<word>`, so that words that look alike share buckets."""
    signed: bool = False
    """Count with a sign of +1 or -1 taken from the hash's top bit: collisions then cancel on average."""

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._value_counts import TextRows

        return TextRows(column)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:  # noqa: ARG002
        from sp_ray_ml.data._token_encoders import Hashes

        return Hashes(column, self.buckets, self.ngrams, self.signed)


class Missing(Preprocessor):
    """Something in the place of missing values (null or NaN), and nothing else changed.

    Text can be filled but not encoded. `mean` and `median` give float64, the others keep the column's type.
    """

    strategy: Literal["mean", "median", "most_frequent", "constant"] = "mean"
    """What to put: of values equally frequent the smaller one."""
    value: float | int | bool | str | None = None
    """For `constant`."""
    indicator: bool = False
    """Whether there is a second column, `<column>_missing`, that says where a value was missing."""

    @pydantic.model_validator(mode="after")
    def _value_matches_strategy(self) -> Missing:
        if (self.strategy == "constant") != (self.value is not None):
            raise ValueError("`value` goes with strategy: constant, and only with it")
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise ValueError("`value` must be finite")
        return self

    def accumulator(self, column: Column) -> Accumulator:
        from sp_ray_ml.data._preprocessing import FillMean, FillMedian
        from sp_ray_ml.data._value_counts import Constant, MostFrequent

        if self.value is not None:
            return Constant(column, self.value)
        if self.strategy == "most_frequent":
            return MostFrequent(column)
        return FillMean(column) if self.strategy == "mean" else FillMedian(column)

    def encoder(self, column: Column, state: Mapping[str, Any]) -> Encoder:
        from sp_ray_ml.data._encoders import Filled

        return Filled(column, state, self.indicator)


PreprocessorField = Annotated[Preprocessor, FAMILY]
"""A field that takes any preprocessor, by `kind` in YAML."""
