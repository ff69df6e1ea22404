"""How preprocessors look at all rows: one accumulator a column, fed with row blocks of fixed size.

`update` takes one block, `merge` what another accumulator took of the blocks that follow, `finish` gives the
column's state. Each keeps its blocks' results apart, or as whole numbers, until `finish` folds them in their
order: so it makes no difference to any bit who took which block.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from sp_ray_ml.data._columns import (
    Column,
    bad_numbers,
    check_number,
    column_type,
    is_text,
    number_unit,
    numbers,
    plain_type,
)
from sp_ray_ml.data._threads import side_by_side
from sp_ray_ml.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.data.preprocessors import Preprocessor

__all__ = ["Accumulator", "fit_columns"]


class Accumulator(ABC):
    """Looks at all rows of one column.

    Args:
        column: The column, with its Arrow type.

    Raises:
        DataError: The column's type cannot be read.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.rows = 0
        self.missing = 0

    @abstractmethod
    def update(self, block: pa.Array) -> None:
        """Take the next block of rows."""

    def merge(self, following: Self) -> None:
        """Take what another one took of the blocks that follow this one's."""
        self.rows += following.rows
        self.missing += following.missing

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """The column's state, as plain JSON data.

        Raises:
            DataError: The values seen cannot be used.
        """

    def _state(self, **values: Any) -> dict[str, Any]:
        kind = plain_type(self.column.type)
        return {
            "type": "string" if is_text(kind) else str(kind),
            "rows": self.rows,
            "missing": self.missing,
            **values,
        }


class _Numbers(Accumulator):
    """Numbers, whatever their Arrow type; `_parts` has what was taken of each block, in their order."""

    def __init__(self, column: Column, missing: str | float) -> None:
        super().__init__(column)
        check_number(column)
        self._policy = missing
        self._infinite = 0
        self._parts: list[Any] = []

    def update(self, block: pa.Array) -> None:
        values = numbers(block)
        self.rows += len(values)
        if len(values) == 0:
            return
        low, high = float(values.min()), float(values.max())
        if math.isnan(low):
            values = values[~np.isnan(values)]
            self.missing += len(block) - len(values)
            if len(values) == 0:
                return
            low, high = float(values.min()), float(values.max())
        if math.isinf(low) or math.isinf(high):
            self._infinite += int(np.isinf(values).sum())
        else:
            self._parts.append(self._part(values, low, high))

    def merge(self, following: Self) -> None:
        super().merge(following)
        self._infinite += following._infinite
        self._parts += following._parts

    @abstractmethod
    def _part(self, values: NDArray[np.float64], low: float, high: float, /) -> Any:
        """What to keep of a block, which has no missing and no infinite values."""

    @abstractmethod
    def _result(self) -> dict[str, Any]:
        """The state from the parts, at least one."""

    def _empty(self) -> dict[str, Any] | None:
        """The state of a column without a single value, if it can have one."""
        return None

    def finish(self) -> dict[str, Any]:
        if self._infinite or (self.missing and self._policy == "error"):
            missing = self.missing if self._policy == "error" else 0
            raise bad_numbers(self.column, self.rows, missing, self._infinite)
        result = self._result() if self._parts else self._empty()
        if result is None:
            raise self.column.error(f"none of its {self.rows} rows has a value", "Leave the column out")
        if not all(math.isfinite(v) for v in result.values() if isinstance(v, float)):
            raise self.column.error(
                "its numbers are too large for 64-bit arithmetic", "Scale the column in the query"
            )
        return self._state(unit=number_unit(self.column.type), **result)


class Moments(_Numbers):
    """Mean, population deviation, smallest and largest value.

    Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances,
    1979. Blocks a and b of n_a and n_b values, with d = mean_b - mean_a and n = n_a + n_b, together have
        mean = mean_a + d * n_b / n
        M2 = M2_a + M2_b + d^2 * n_a * n_b / n
    and the deviation is sqrt(M2 / n).
    """

    def _part(self, values: NDArray[np.float64], low: float, high: float, /) -> tuple[float, ...]:
        count = len(values)
        if low == high:
            return count, low, 0.0, low, high
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(values.sum()) / count
            deviations = values - mean
            # Two passes and a correction for the rounded mean (Chan, Golub, LeVeque 1983, equation 1.7). No
            # BLAS here: its sums depend on the number of threads.
            error = float(deviations.sum())
            np.multiply(deviations, deviations, out=deviations)
            squares = float(deviations.sum()) - error * error / count
        return count, mean, max(squares, 0.0) if math.isfinite(squares) else math.inf, low, high

    def _result(self) -> dict[str, Any]:
        n, mean, squares, low, high = self._parts[0]
        for count, mean_b, squares_b, low_b, high_b in self._parts[1:]:
            total = n + count
            delta = mean_b - mean
            mean += delta * count / total
            squares += squares_b + delta * delta * n * count / total
            n, low, high = total, min(low, low_b), max(high, high_b)
        if not math.isfinite(high - low):
            mean = math.inf
        return {"mean": mean, "std": math.sqrt(squares / n), "min": low, "max": high}

    def _empty(self) -> dict[str, Any] | None:
        if not isinstance(self._policy, int | float) and self._policy != "zero":
            return None
        value = 0.0 if self._policy == "zero" else float(self._policy)
        return {"mean": value, "std": 0.0, "min": value, "max": value}


class FillMean(Moments):
    """The mean, to fill with."""

    def __init__(self, column: Column) -> None:
        super().__init__(column, "fill")

    def _result(self) -> dict[str, Any]:
        return {"fill": super()._result()["mean"], "fill_type": "double"}


class UniformEdges(Moments):
    """Inner edges of buckets of equal width between the smallest and the largest value."""

    def __init__(self, column: Column, missing: str, buckets: int) -> None:
        super().__init__(column, missing)
        self._buckets = buckets

    def _part(self, _: NDArray[np.float64], low: float, high: float, /) -> tuple[float, ...]:
        return low, high

    def _result(self) -> dict[str, Any]:
        low, high = min(p[0] for p in self._parts), max(p[1] for p in self._parts)
        if not math.isfinite(high - low):
            return {"min": math.inf}
        edges = np.linspace(low, high, self._buckets + 1)[1:-1]
        return {"min": low, "max": high, "edges": np.unique(edges[edges > low]).tolist()}

    def _empty(self) -> None:
        return None


class Quantiles(_Numbers):
    """Inner edges at the exact quantiles: all values are kept (8 bytes each) and sorted at the end."""

    def __init__(self, column: Column, missing: str, buckets: int) -> None:
        super().__init__(column, missing)
        self._buckets = buckets

    def _part(self, values: NDArray[np.float64], *_: float) -> NDArray[np.float64]:
        return values

    def _sorted(self) -> NDArray[np.float64]:
        values = np.concatenate(self._parts)
        values.sort()
        return values

    def _result(self) -> dict[str, Any]:
        values = self._sorted()
        low, high = float(values[0]), float(values[-1])
        if not math.isfinite(high - low):
            return {"min": math.inf}
        edges = np.unique(_quantiles(values, np.arange(1, self._buckets) / self._buckets))
        # Where quantiles coincide or nearly do, some buckets would have no row: those go.
        _, first = np.unique(np.searchsorted(values, edges), return_index=True)
        edges = edges[first]
        return {"min": low, "max": high, "edges": edges[edges > low].tolist()}


def _quantiles(values: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of sorted values; linear between neighbours, as `numpy.quantile`."""
    position = shares * (len(values) - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, len(values) - 1)
    with np.errstate(over="ignore"):
        found = values[below] + (values[above] - values[below]) * (position - below)
    return np.asarray(found, np.float64)


class FillMedian(Quantiles):
    """The median, to fill with."""

    def __init__(self, column: Column) -> None:
        super().__init__(column, "fill", 2)

    def _result(self) -> dict[str, Any]:
        return {"fill": float(_quantiles(self._sorted(), np.array([0.5]))[0]), "fill_type": "double"}


class Range(_Numbers):
    """Smallest and largest value of numbers that stay as they are; missing ones may stay missing."""

    def __init__(self, column: Column) -> None:
        super().__init__(column, "keep")

    def _part(self, _: NDArray[np.float64], low: float, high: float, /) -> tuple[float, float]:
        return low, high

    def _result(self) -> dict[str, Any]:
        return {"min": min(p[0] for p in self._parts), "max": max(p[1] for p in self._parts)}


class GivenEdges(_Numbers):
    """Edges that are given: only the values are checked."""

    def __init__(self, column: Column, missing: str, edges: Sequence[float]) -> None:
        super().__init__(column, missing)
        self._edges = list(edges)

    def _part(self, _: NDArray[np.float64], low: float, high: float, /) -> tuple[float, float]:
        return low, high

    def _result(self) -> dict[str, Any]:
        low, high = min(p[0] for p in self._parts), max(p[1] for p in self._parts)
        return {"min": low, "max": high, "edges": self._edges}

    def _empty(self) -> dict[str, Any]:
        return {"edges": self._edges}


def fit_columns(
    features: Sequence[Preprocessor], data: Any, where: str = ""
) -> list[dict[str, Mapping[str, Any]]]:
    """The state of each feature, by column, from one pass over the data (see `fit_features`)."""
    from sp_ray_ml.data.source import as_source

    source = as_source(data)
    needed = list(dict.fromkeys(name for feature in features for name in feature.columns))
    found: list[dict[str, Accumulator]] = []
    for i, feature in enumerate(features):
        prefix = f"{where}.{i} " if where else ""
        found.append({})
        for name in feature.columns:
            place = f"{prefix}({source.name}.{name})" if prefix else f"{source.name}.{name}"
            column = Column(name, column_type(source.schema, name, place), place)
            found[-1][name] = feature.accumulator(column)
    rows = 0
    columns = [item for accumulators in found for item in accumulators.items()]
    with side_by_side() as each:
        for block in source.select(needed).blocks():
            rows += block.num_rows
            for _ in each(partial(_update, block), columns, values=block.num_rows * len(columns)):
                pass
    if rows == 0:
        raise DataError(
            "no rows to fit preprocessors on",
            where=source.name,
            hint="Check the table, the filters and the split",
        )
    return [{name: a.finish() for name, a in accumulators.items()} for accumulators in found]


def _update(block: pa.RecordBatch, column: tuple[str, Accumulator]) -> None:
    name, accumulator = column
    accumulator.update(block.column(name))
