"""`compare_units`: two models on the same users or rows, the difference of each metric with its interval."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.data._columns import plain
from sp_ray_ml.errors import ColumnNotFoundError, DataError
from sp_ray_ml.inference._evaluation_groups import Segments
from sp_ray_ml.inference._evaluation_ids import unit_numbers
from sp_ray_ml.inference._evaluation_rows import classes_and_scores
from sp_ray_ml.inference._evaluation_units import TEST_ITEMS, units_of
from sp_ray_ml.inference.evaluators import Classification, Evaluator, Regression, RowEvaluator
from sp_ray_ml.metrics._calibration import quantile_calibration_error
from sp_ray_ml.metrics.means import LEAST_UNITS, NORMAL, Means, interval
from sp_ray_ml.metrics.scores import ScoreCounts, auc_difference, drawn_precisions

__all__ = ["Comparison", "Difference", "compare_units"]


@dataclass(frozen=True)
class Difference:
    """One metric of both.

    Attributes:
        metric: Its name, with the suffix of a segment.
        a: Of the first.
        b: Of the second.
        low: Lower end of the interval of 95 % of b - a; None where there is none.
        high: Its upper end.
    """

    metric: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None

    @property
    def difference(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """What `compare_units` found.

    Attributes:
        differences: Of each metric.
        units: How many users or rows both have.
        of: `users` or `rows`.
        notes: What the reader should know.
        spread: By metric of all, the differences of single users or rows where they are not 0 for most: for a picture.
    """

    differences: list[Difference]
    units: int
    of: str
    notes: list[str] = field(default_factory=list)
    spread: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def compare_units(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    by: Sequence[str] = (),
    bootstrap: int = 1_000,
    seed: int = 0,
) -> Comparison:
    """Compare what `evaluate_predictions(…, units=…)` kept of two models, unit by unit.

    Both are measured on the users (or rows) that they share, and drawn together, so that what is hard for both cancels
    out: an interval of the difference is much shorter than those of the metrics.

    Args:
        a: The first file.
        b: The second.
        by: Columns of the files whose values are compared on their own.
        bootstrap: Replicates.
        seed: Of the bootstrap.

    Raises:
        StorageError: A file is missing or another's.
        DataError: They measured something else, share nobody, or hold different truths.
        ColumnNotFoundError: A column of `by` is not there.
    """
    (of_a, ids_a, metrics_a, table_a), (of_b, ids_b, metrics_b, table_b) = (
        units_of(Path(a)),
        units_of(Path(b)),
    )
    lists, pairs = bool(metrics_a), _pairs(of_a, of_b)
    if bool(metrics_b) != lists or not (lists or pairs):
        raise DataError(
            f"the runs measured different things: {_kind(of_a, metrics_a)}, and {_kind(of_b, metrics_b)}",
            hint="Compare runs of one kind",
        )
    if ids_a != ids_b:
        raise DataError(f"the runs tell their units apart by {ids_a}, and by {ids_b}")
    for column in by:
        if column not in table_a.column_names:
            there = [name for name in table_a.column_names if name not in {*ids_a, *metrics_a, TEST_ITEMS}]
            raise ColumnNotFoundError(
                f"the run's evaluation kept no column {column!r}",
                where="by",
                hint=f"It kept: {', '.join(there) or 'none'}. Name it in evaluate.by, and run again",
            )
    table_a, table_b, notes = _shared(table_a, table_b, ids_a, "users" if lists else "rows")
    if lists:
        if not table_a[TEST_ITEMS].equals(table_b[TEST_ITEMS]):
            raise DataError(
                "the runs have different test items for the same users, so that nothing can be compared",
                hint="Evaluate both on the same split",
            )
        names = [name for name in metrics_a if name in metrics_b]
        parts: list[Any] = [_Lists(names, table_a, table_b)]
    else:
        parts = [_Rows(x, y, table_a, table_b) for x, y in pairs]
    units = _numbers(table_a, ids_a)
    segments = Segments.of_table(table_a, by)
    differences: list[Difference] = []
    spread: dict[str, NDArray[np.float64]] = {}
    for label, members in zip(segments.labels(), segments.members(table_a), strict=True):
        mine = np.arange(len(units)) if members is None else members
        if len(mine):
            for part in parts:
                differences += part.differences(mine, units[mine], label, bootstrap, seed)
    for part in parts:
        spread |= part.spread()
    return Comparison(differences, len(units), "users" if lists else "rows", notes, spread)


def _pairs(a: Sequence[Evaluator], b: Sequence[Evaluator]) -> list[tuple[RowEvaluator, RowEvaluator]]:
    """The evaluators of rows that both have."""
    left, found = list(b), []
    for mine in a:
        theirs = next((each for each in left if type(each) is type(mine)), None)
        if isinstance(mine, RowEvaluator) and isinstance(theirs, RowEvaluator):
            left.remove(theirs)
            found.append((mine, theirs))
    return found


def _kind(evaluators: Sequence[Any], metrics: Sequence[str]) -> str:
    if metrics:
        return "ranked lists of users"
    return ", ".join(type(each).__name__.lower() for each in evaluators) or "nothing"


def _numbers(table: pa.Table, ids: Sequence[str]) -> NDArray[np.uint64]:
    if not ids:
        return np.arange(table.num_rows).astype(np.uint64)
    return unit_numbers([table[name].combine_chunks() for name in ids], ", ".join(ids))


def _shared(a: pa.Table, b: pa.Table, ids: Sequence[str], of: str) -> tuple[pa.Table, pa.Table, list[str]]:
    """The rows of both that have the same ids, in one order."""
    if not ids:
        if a.num_rows != b.num_rows:
            raise DataError(
                f"the runs were measured on {a.num_rows:,} and {b.num_rows:,} rows, which have no ids to pair them by",
                hint="Evaluate both on the same rows",
            )
        return a, b, []
    places = pa.chunked_array([pa.array(np.arange(b.num_rows))])
    keys_a = a.select(ids).append_column("a", pa.array(np.arange(a.num_rows)))
    keys_b = b.select(ids).append_column("b", places)
    for name in ids:  # what differs in width only is the same id
        if keys_a.schema.field(name).type != keys_b.schema.field(name).type:
            kind = (
                pa.int64() if pa.types.is_integer(plain(a[name].combine_chunks()).type) else pa.large_string()
            )
            keys_a, keys_b = (
                keys.set_column(keys.column_names.index(name), name, keys[name].cast(kind))
                for keys in (keys_a, keys_b)
            )
    both = keys_a.join(keys_b, list(ids), join_type="inner").sort_by("a")
    if not both.num_rows:
        raise DataError(
            f"the runs share none of their {a.num_rows:,} and {b.num_rows:,} {of}, so that nothing can be compared",
            hint="Evaluate both on the same split",
        )
    left = a.num_rows + b.num_rows - 2 * both.num_rows
    notes = [f"{left:,} {of} that only one of the runs was measured on are left out"] if left else []
    return a.take(both["a"]), b.take(both["b"]), notes


class _Lists:
    """Values of users, whose means are the metrics."""

    def __init__(self, names: Sequence[str], a: pa.Table, b: pa.Table) -> None:
        self._names = list(names)
        self._values = [np.stack([table[name].to_numpy() for name in names]) for table in (a, b)]

    def differences(
        self, members: NDArray[np.int64], units: NDArray[np.uint64], label: str, replicates: int, seed: int
    ) -> list[Difference]:
        """Of some users."""
        values = [each[:, members] for each in self._values]
        return _of_means(self._names, values, (_same, _same), units, label, replicates, seed)

    def spread(self) -> dict[str, NDArray[np.float64]]:
        """The differences of single users."""
        return {name: b - a for name, a, b in zip(self._names, *self._values, strict=True)}


def _same(means: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    return means


class _Rows:
    """Truth and predictions of rows."""

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
            if not truths[0].equals(truths[1].cast(truths[0].type)):
                raise DataError(
                    "the runs have different truths for the same rows, so that nothing can be compared",
                    hint="Evaluate both on the same rows",
                )
        found = [each.values(rows) for each, rows in zip((a, b), self._rows, strict=True)]
        self._names = [name for name in found[0] if name in found[1]]
        self._values = [np.stack([np.asarray(each[n], np.float64) for n in self._names]) for each in found]

    def differences(
        self, members: NDArray[np.int64], units: NDArray[np.uint64], label: str, replicates: int, seed: int
    ) -> list[Difference]:
        """Of some rows."""
        values = [each[:, members] for each in self._values]
        functions = (self._evaluators[0].metrics, self._evaluators[1].metrics)
        found = _of_means(self._names, values, functions, units, label, replicates, seed)
        a, b = self._evaluators
        if isinstance(a, Classification) and isinstance(b, Classification):
            found += self._curves(a, b, members, units, label, replicates, seed)
        return found

    def _curves(
        self, a: Classification, b: Classification, members: NDArray[np.int64], units: NDArray[np.uint64], label: str,
        replicates: int, seed: int,
    ) -> list[Difference]:  # fmt: skip
        (truth, first), (_, second) = (
            classes_and_scores(each, rows.take(pa.array(members)))
            for each, rows in zip((a, b), self._rows, strict=True)
        )
        if first.shape[1] != 2:
            return []
        scores, met = [np.ascontiguousarray(each[:, 1]) for each in (first, second)], truth == 1
        counts = [ScoreCounts(), ScoreCounts()]
        for each, values in zip(counts, scores, strict=True):
            each.update(values, met)
        suffix, found = f"/{label}" if label else "", []
        aucs = [each.auc() for each in counts]
        if aucs[0] is not None and aucs[1] is not None:
            enough = len(units) >= LEAST_UNITS
            paired = auc_difference(scores[0], scores[1], met) if enough else None
            low, high = (
                (None, None)
                if paired is None
                else (paired[0] - NORMAL * paired[1], paired[0] + NORMAL * paired[1])
            )
            found.append(Difference(f"auc{suffix}", aucs[0], aucs[1], low, high))
        areas = [each.average_precision() for each in counts]
        if areas[0] is not None and areas[1] is not None:
            drawn = [drawn_precisions(values, met, units, replicates, seed) for values in scores]
            ends = interval(drawn[1] - drawn[0]) if len(units) >= LEAST_UNITS else None
            found.append(Difference(f"pr_auc{suffix}", areas[0], areas[1], *(ends or (None, None))))
        if a.strategy == "quantile":
            errors = [quantile_calibration_error(each, a.bins) for each in counts]
            found.append(Difference(f"ece{suffix}", errors[0], errors[1]))
        return found

    def spread(self) -> dict[str, NDArray[np.float64]]:
        """The differences of single rows in what is a loss of a row."""
        told = {"log_loss": "log_loss", "brier": "brier", "absolute": "absolute error"}
        return {
            told[name]: b - a for name, a, b in zip(self._names, *self._values, strict=True) if name in told
        }


def _of_means(
    names: Sequence[str], values: Sequence[NDArray[np.float64]], functions: Any, units: NDArray[np.uint64], label: str,
    replicates: int, seed: int,
) -> list[Difference]:  # fmt: skip
    """Metrics that are functions of means, both drawn together."""
    replicates = replicates if len(units) >= LEAST_UNITS else 0
    means = Means([*(f"a {name}" for name in names), *(f"b {name}" for name in names)], replicates, seed)
    means.update(np.concatenate(values), units)
    of_all = {name: np.array([value]) for name, value in means.means().items()}
    drawn = means.drawn()

    def split(found: Mapping[str, NDArray[Any]], of: str) -> dict[str, NDArray[Any]]:
        return {name: found[f"{of} {name}"] for name in names}

    metrics = [function(split(of_all, of)) for function, of in zip(functions, "ab", strict=True)]
    samples: list[Mapping[str, NDArray[Any]]] = []
    if replicates:
        with np.errstate(invalid="ignore", divide="ignore"):
            samples = [function(split(drawn, of)) for function, of in zip(functions, "ab", strict=True)]
    suffix, result = f"/{label}" if label else "", []
    for name, value in metrics[0].items():
        first, second = float(np.asarray(value)[0]), float(np.asarray(metrics[1][name])[0])
        if np.isfinite(first) and np.isfinite(second):
            ends = interval(np.asarray(samples[1][name]) - np.asarray(samples[0][name])) if samples else None
            result.append(Difference(f"{name}{suffix}", first, second, *(ends or (None, None))))
    return result
