"""What is compared of two models: values of users and their lists, or truth and predictions of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data._columns import plain
from sp_ray_ml.errors import DataError
from sp_ray_ml.inference._evaluation_curves import Curves
from sp_ray_ml.inference._evaluation_exposure import spreads_of_lists
from sp_ray_ml.inference._evaluation_rows import classes_and_scores
from sp_ray_ml.inference._evaluation_units import RECOMMENDED, Units
from sp_ray_ml.inference.evaluators import Classification, Regression, RowEvaluator
from sp_ray_ml.metrics.exposure import centred
from sp_ray_ml.metrics.means import LEAST_UNITS, NORMAL, Means, interval
from sp_ray_ml.metrics.scores import auc_difference

__all__ = ["Difference", "ListsOfBoth", "RowsOfBoth"]


@dataclass(frozen=True)
class Difference:
    """One metric of both.

    Attributes:
        metric: Its name, with the suffix of a segment.
        a: Of the first.
        b: Of the second.
        low: Lower end of the interval of 95 % of b - a; None where there is none.
        high: Its upper end.
        larger_is_better: Whether it is better with a larger value, where its evaluator says so.
    """

    metric: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None
    larger_is_better: bool | None = None

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class ListsOfBoth:
    """Values of users, whose means are the metrics, and their lists, which spread over the catalogue.

    Args:
        a: What the first run kept, of the users of both.
        b: The second, of the same users in the same order.
    """

    def __init__(self, a: Units, b: Units) -> None:
        self._names = [name for name in a.metrics if name in b.metrics]
        self._values = [np.stack([each.table[name].to_numpy() for name in self._names]) for each in (a, b)]
        self._ks = sorted(set(a.k) & set(b.k))
        self._num_items = (a.num_items, b.num_items)
        # Runs of earlier versions have kept no lists.
        self._lists = [_codes(each.table[RECOMMENDED], self._ks[-1]) for each in (a, b)] if self._ks else []

    def differences(
        self, members: NDArray[np.int64], units: NDArray[np.uint64], label: str, replicates: int, seed: int
    ) -> list[Difference]:
        """Of some users."""
        values = [each[:, members] for each in self._values]
        found = _of_means(self._names, values, (_same, _same), units, label, replicates, seed)
        if not self._lists:
            return found
        replicates = replicates if len(units) >= LEAST_UNITS else 0
        first, second = (
            spreads_of_lists(lists[members], units, self._ks, num_items, replicates, seed)
            for lists, num_items in zip(self._lists, self._num_items, strict=True)
        )
        for name, (a, drawn) in first.items():
            b, other = second[name]
            # As of one run: replicates have fewer users than there are, and lean alike for both.
            found.append(_difference(name, label, a, b, interval(centred(other - drawn, b - a))))
        return found

    def spread(self) -> dict[str, NDArray[np.float64]]:
        """The differences of single users."""
        return {name: b - a for name, a, b in zip(self._names, *self._values, strict=True)}


def _codes(column: pa.ChunkedArray, depth: int) -> NDArray[np.int32]:
    """Lists of ids as codes, `[users, depth]`, -1 where a list ends."""
    lists = column.combine_chunks()
    lengths = pa.compute.list_value_length(lists).to_numpy(zero_copy_only=False)
    items = plain(lists.flatten()).dictionary_encode().indices.to_numpy(zero_copy_only=False)
    there = np.arange(max(depth, int(lengths.max(initial=0)))) < lengths[:, None]
    codes = np.full(there.shape, -1, np.int32)
    codes[there] = items
    return codes[:, :depth]


def _same_values(first: pa.Array, second: pa.Array) -> bool:
    first, second = plain(first), plain(second)
    try:
        return bool(first.equals(second.cast(first.type)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):  # such as text that is no number
        return False


def _same(means: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return means


class RowsOfBoth:
    """Truth and predictions of rows.

    Args:
        a: What measures those of the first run.
        b: And of the second.
        first: The rows.
        second: The same rows of the second, in the same order.
    """

    def __init__(self, a: RowEvaluator, b: RowEvaluator, first: pa.Table, second: pa.Table) -> None:
        if isinstance(a, Classification) and isinstance(b, Classification):
            b = b.model_copy(
                update={"bins": a.bins, "strategy": a.strategy}
            )  # calibration over the same bins
        self._evaluators = (a, b)
        self._rows = [
            table.select(each.columns()).combine_chunks().to_batches()[0]
            for each, table in zip((a, b), (first, second), strict=True)
        ]
        if isinstance(a, Classification | Regression) and isinstance(b, Classification | Regression):
            truths = [rows.column(each.truth) for each, rows in zip((a, b), self._rows, strict=True)]
            if not _same_values(*truths):
                raise DataError(
                    "the runs have different truths for the same rows, so that nothing can be compared",
                    hint="Evaluate both with the same label (table.label) on the same rows",
                )
        found = [each.values(rows) for each, rows in zip((a, b), self._rows, strict=True)]
        classes = [sum(name.startswith("hit ") for name in values) for values in found]
        if isinstance(a, Classification) and classes[0] != classes[1]:
            raise DataError(
                f"the runs tell {classes[0]} and {classes[1]} classes apart, so that their losses mean different things",
                hint="Train both on rows with the same classes",
            )
        self._names = [name for name in found[0] if name in found[1]]
        self._values = [np.stack([np.asarray(each[n], np.float64) for n in self._names]) for each in found]

    def differences(
        self, members: NDArray[np.int64], units: NDArray[np.uint64], label: str, replicates: int, seed: int
    ) -> list[Difference]:
        """Of some rows."""
        values = [each[:, members] for each in self._values]
        functions = (self._evaluators[0].metrics, self._evaluators[1].metrics)
        squared = [name for name in self._evaluators[0].squared() if name in self._names]
        found = _of_means(self._names, values, functions, units, label, replicates, seed, squared)
        a, b = self._evaluators
        if isinstance(a, Classification) and isinstance(b, Classification):
            found += self._curves(a, b, members, units, label, replicates, seed)
        return [
            replace(each, larger_is_better=b.larger_is_better(each.metric.removesuffix(f"/{label}")))
            for each in found
        ]

    def _curves(
        self, a: Classification, b: Classification, members: NDArray[np.int64], units: NDArray[np.uint64], label: str,
        replicates: int, seed: int,
    ) -> list[Difference]:  # fmt: skip
        rows = [each.take(pa.array(members)) for each in self._rows]
        enough = len(units) >= LEAST_UNITS
        curves = [Curves(each).draw(replicates if enough else 0, seed, two=True) for each in (a, b)]
        for each, part in zip(curves, rows, strict=True):
            each.update(part, units)
        (first, _), (second, _) = (each.finish() for each in curves)
        before, after = (each.drawn() for each in curves)
        found = []
        for name in first:
            if name not in second:
                continue
            ends = interval(after[name] - before[name]) if name in before else None
            if name == "auc" and enough and curves[0].two:
                ends = _delong(a, b, rows)
            found.append(_difference(name, label, first[name], second[name], ends))
        return found

    def spread(self) -> dict[str, NDArray[np.float64]]:
        """The differences of single rows in what is a loss of a row."""
        told = {"log_loss": "log_loss", "brier": "brier", "absolute": "absolute error"}
        return {
            told[name]: b - a for name, a, b in zip(self._names, *self._values, strict=True) if name in told
        }


def _of_means(
    names: Sequence[str], values: Sequence[NDArray[np.float64]], functions: Any, units: NDArray[np.uint64], label: str,
    replicates: int, seed: int, squared: Sequence[str] = (),
) -> list[Difference]:  # fmt: skip
    """Metrics that are functions of means, both drawn together."""
    replicates = replicates if len(units) >= LEAST_UNITS else 0
    both, of_both = ([f"{of} {name}" for of in "ab" for name in each] for each in (names, squared))
    means = Means(both, replicates, seed, of_both)
    means.update(np.concatenate(values), units)
    of_all = {name: np.array([value]) for name, value in means.means().items()}
    drawn = means.drawn()

    def split(found: Mapping[str, NDArray[Any]], of: str) -> dict[str, NDArray[Any]]:
        return {name[2:]: value for name, value in found.items() if name.startswith(f"{of} ")}

    metrics = [function(split(of_all, of)) for function, of in zip(functions, "ab", strict=True)]
    samples: list[Mapping[str, NDArray[Any]]] = []
    if replicates:
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = [function(split(drawn, of)) for function, of in zip(functions, "ab", strict=True)]
    result = []
    for name, value in metrics[0].items():
        first, second = float(np.asarray(value)[0]), float(np.asarray(metrics[1][name])[0])
        if np.isfinite(first) and np.isfinite(second):
            ends = interval(np.asarray(samples[1][name]) - np.asarray(samples[0][name])) if samples else None
            result.append(_difference(name, label, first, second, ends))
    return result


def _delong(
    a: Classification, b: Classification, rows: Sequence[pa.RecordBatch]
) -> tuple[float, float] | None:
    """The interval of the difference of two AUCs on the same rows."""
    (truth, first), (_, second) = (classes_and_scores(*each) for each in zip((a, b), rows, strict=True))
    paired = auc_difference(first[:, 1], second[:, 1], truth == 1)
    return None if paired is None else (paired[0] - NORMAL * paired[1], paired[0] + NORMAL * paired[1])


def _difference(name: str, label: str, a: float, b: float, ends: tuple[float, float] | None) -> Difference:
    return Difference(f"{name}/{label}" if label else name, a, b, *(ends or (None, None)))
