"""Accumulators of rows by segment: the values' means, and curves, of all rows and of each segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml.data._columns import plain
from sp_ray_ml.data.source import Source, as_source
from sp_ray_ml.errors import ConfigError
from sp_ray_ml.inference._evaluation_curves import Curves
from sp_ray_ml.inference._evaluation_ids import unit_numbers
from sp_ray_ml.inference.evaluators import RowEvaluator
from sp_ray_ml.metrics._room import Room
from sp_ray_ml.metrics.means import LEAST_UNITS, Means, interval

__all__ = ["MOST_SEGMENTS", "Found", "RowGroups", "Segments", "functions_of_means"]

_MOST_VALUES = 1 << 23  # of rows that are measured at a time: many classes have many

MOST_SEGMENTS = 50
"""Values of a column that have metrics of their own, the most frequent ones; the others are `other`."""


@dataclass
class Found:
    """Metrics and intervals by name."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(
        self, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], group: str
    ) -> None:
        """Add those of a group.

        Raises:
            ConfigError: One of them is there already.
        """
        suffix = f"/{group}" if group else ""
        for name, value in metrics.items():
            if f"{name}{suffix}" in self.metrics:
                raise ConfigError(f"two evaluators measure {name!r}", where="evaluators")
            self.metrics[f"{name}{suffix}"] = value
        self.intervals.update({f"{name}{suffix}": value for name, value in intervals.items()})


class Segments:
    """Which segments each row is in.

    Args:
        values: By column, its values that count on their own, as text.
    """

    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self.values = {column: list(found) for column, found in values.items()}

    @classmethod
    def of(cls, source: Source, columns: Sequence[str]) -> Segments:
        """Look at all rows once for the most frequent values."""
        if not columns:
            return cls({})
        counts: dict[str, dict[str, int]] = {column: {} for column in columns}
        for batch in source.select(columns).batches():
            for column in columns:
                for entry in pc.value_counts(_text(batch.column(column))).to_pylist():
                    mine = counts[column]
                    mine[entry["values"]] = mine.get(entry["values"], 0) + entry["counts"]
        chosen = {}
        for column, found in counts.items():
            most = sorted(found, key=lambda value: (-found[value], value))[:MOST_SEGMENTS]
            chosen[column] = sorted(most) + (
                ["other"] if len(found) > len(most) and "other" not in most else []
            )
        return cls(chosen)

    @classmethod
    def of_table(cls, table: pa.Table, columns: Sequence[str]) -> Segments:
        """As `of`, of a table."""
        return cls.of(as_source(table), columns)

    def labels(self) -> list[str]:
        """All groups: the empty one of all rows, and `column=value`."""
        return ["", *(f"{column}={value}" for column, values in self.values.items() for value in values)]

    def members(self, rows: pa.RecordBatch | pa.Table) -> list[NDArray[np.int64] | None]:
        """The places of the rows in each of `labels()`; None for all."""
        found: list[NDArray[np.int64] | None] = [None]
        for column, values in self.values.items():
            texts = rows.column(column)
            texts = _text(texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts)
            codes = pc.index_in(texts, pa.array(values, pa.string()))
            codes = pc.fill_null(codes, values.index("other") if "other" in values else -1)
            places = codes.to_numpy(zero_copy_only=False)
            order = np.argsort(places, kind="stable")
            ends = np.searchsorted(places[order], np.arange(len(values) + 1))
            found += [order[ends[i] : ends[i + 1]] for i in range(len(values))]
        return found


def _text(values: pa.Array) -> pa.Array:
    return pc.fill_null(plain(values).cast(pa.string()), "null")


class RowGroups:
    """What some evaluators measure of rows, in all of them and in each segment: `update`, `merge`, `finish`.

    Args:
        evaluators: Which.
        segments: Whose.
        ids: Columns that tell a row from others, for the draws of the bootstrap; the row's number without.
        replicates: Of the bootstrap.
        seed: Likewise.
        beside: How many such are at work in this process at once.
    """

    def __init__(
        self,
        evaluators: Sequence[RowEvaluator],
        segments: Segments,
        ids: Sequence[str] = (),
        replicates: int = 0,
        seed: int = 0,
        beside: int = 1,
    ) -> None:
        self._evaluators, self._segments, self._ids = list(evaluators), segments, list(ids)
        self._replicates, self._seed = replicates, seed
        self.rows = 0
        self._most = 1 << 14  # what is computed of so few stays in a core's cache
        self._means: list[list[Means | None]] = [[None] * len(evaluators) for _ in segments.labels()]
        self._curves: list[list[Curves | None]] = [
            [each.curves() for each in evaluators] for _ in segments.labels()
        ]
        every = [each for of_group in self._curves for each in of_group if each is not None]
        room = Room(max(1, beside * len(every)))
        for curves in every:
            curves.draw(replicates, seed).within(room)

    def empty(self, beside: int = 1) -> RowGroups:
        """One like it, without rows; so many are at work at once."""
        return RowGroups(self._evaluators, self._segments, self._ids, self._replicates, self._seed, beside)

    def update(self, rows: pa.RecordBatch, first: int = 0) -> None:
        """Take some rows, the first of which has that number."""
        if rows.num_rows > self._most:
            for begin in range(0, rows.num_rows, self._most):
                self.update(rows.slice(begin, self._most), first + begin)
            return
        if not rows.num_rows:
            return
        self.rows += rows.num_rows
        units = (
            unit_numbers([rows.column(name) for name in self._ids], ", ".join(self._ids))
            if self._ids
            else np.arange(first, first + rows.num_rows).astype(np.uint64)
        )
        members = self._segments.members(rows)
        for place, evaluator in enumerate(self._evaluators):
            values = evaluator.values(rows)
            names = list(values)
            self._most = max(1_024, min(self._most, _MOST_VALUES // len(names)))
            columns = [np.asarray(values[name], np.float64) for name in names]
            for group, mine in enumerate(members):
                if mine is not None and not len(mine):
                    continue
                means = self._means[group][place]
                if means is None:
                    means = self._means[group][place] = Means(
                        names, self._replicates, self._seed, evaluator.squared()
                    )
                if mine is None:
                    means.update(columns, units)
                else:
                    means.update([column[mine] for column in columns], units[mine])
                if (curves := self._curves[group][place]) is not None:
                    if mine is None:
                        curves.update(rows, units)
                    else:
                        curves.update(rows.take(pa.array(mine)), units[mine])

    def merge(self, other: RowGroups) -> None:
        """Take the rows of another one."""
        self.rows += other.rows
        for mine, theirs in zip(self._means, other._means, strict=True):
            for place, means in enumerate(theirs):
                if means is None:
                    continue
                if (own := mine[place]) is None:
                    mine[place] = means
                else:
                    own.merge(means)
        for ours, those in zip(self._curves, other._curves, strict=True):
            for curve, following in zip(ours, those, strict=True):
                if curve is not None and following is not None:
                    curve.merge(following)

    def finish(self) -> Found:
        """The metrics and their intervals."""
        found = Found()
        for group, label in enumerate(self._segments.labels()):
            rows = 0
            for place, evaluator in enumerate(self._evaluators):
                means = self._means[group][place]
                if means is not None:
                    rows = means.units
                    found.add(*functions_of_means(evaluator.metrics, means), label)
                curves = self._curves[group][place]
                if means is not None and curves is not None:
                    found.add(*curves.finish(), label)
            found.add({"rows": float(rows)}, {}, label)
        return found


def functions_of_means(metrics: Any, means: Means) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Metrics as functions of means, and their intervals where there are replicates."""
    of_all = metrics({name: np.array([value]) for name, value in means.means().items()})
    values = {name: float(np.asarray(value)[0]) for name, value in of_all.items()}
    values = {name: value for name, value in values.items() if np.isfinite(value)}
    intervals = {}
    if means.replicates and means.units >= LEAST_UNITS:
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = metrics(means.drawn())
        for name in values:
            if (found := interval(np.asarray(drawn[name]))) is not None:
                intervals[name] = found
    return values, intervals
