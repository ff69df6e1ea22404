"""What a job keeps of its evaluation beside the metrics: each user's or row's own, intervals, segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.errors import ColumnNotFoundError
from sp_ray_ml.inference._evaluation_exposure import add_spreads, spreads_of_lists
from sp_ray_ml.inference._evaluation_groups import Found, RowGroups, Segments, functions_of_means
from sp_ray_ml.inference._evaluation_ids import unit_numbers
from sp_ray_ml.inference._evaluation_units import (
    RECOMMENDED,
    TEST_DIGEST,
    TEST_ITEMS,
    UNITS,
    UnitWriter,
    digests,
    lists_column,
    lists_header,
    rows_header,
)
from sp_ray_ml.inference.evaluators import RowEvaluator
from sp_ray_ml.metrics.means import Means

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["RowUnits", "UserUnits", "segment_columns"]


def segment_columns(by: Sequence[str], table: pa.Table | None, where: str) -> dict[str, pa.ChunkedArray]:
    """The columns of `evaluate.by`.

    Raises:
        ColumnNotFoundError: One is not there.
    """
    there = [] if table is None else table.column_names
    for column in by:
        if column not in there:
            raise ColumnNotFoundError(
                f"{where} has no column {column!r} that was read",
                where="evaluate.by",
                hint=f"It has: {', '.join(there) or 'none'}",
            )
    return {} if table is None else {column: table[column] for column in by}


class UserUnits:
    """Values of users and their lists, as they are measured.

    Args:
        folder: Where `units.parquet` is written.
        names: What the values are called.
        column: Name of the users' ids.
        ids: Id of each user, by index.
        items: Id of each item, by index.
        k: Lengths of the list.
        by: Columns of the users, by index.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        column: str,
        ids: pa.Array,
        items: pa.Array,
        k: Sequence[int],
        by: Mapping[str, pa.ChunkedArray],
    ) -> None:
        self._names, self._column, self._ids, self._by = list(names), column, ids, by
        self._items, self._ks = items, sorted(set(k))
        self._item_numbers = unit_numbers([items], "items")
        self._writer = UnitWriter(folder / UNITS, lists_header(None, [column], names, k, len(items)))
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int32]]] = []

    def add(
        self,
        users: NDArray[np.int64],
        values: NDArray[np.float64],
        test_items: NDArray[np.int64],
        lists: NDArray[np.int32],
        truth: csr_array[Any],
    ) -> None:
        """Take some users, by index.

        Args:
            users: `[rows]`.
            values: float64 `[names, rows]`.
            test_items: `[rows]`.
            lists: `[rows, max(k)]`, items by index, -1 where a list ends.
            truth: `[rows, items]`, the stored entries are test items.
        """
        lists = lists[:, : self._ks[-1]]
        places = pa.array(users)
        columns: dict[str, Any] = {self._column: self._ids.take(places), TEST_ITEMS: pa.array(test_items)}
        columns[TEST_DIGEST] = pa.array(digests(truth.indptr, self._item_numbers[truth.indices]))
        columns |= {name: column.take(places).cast(pa.string()) for name, column in self._by.items()}
        columns[RECOMMENDED] = lists_column(lists, lambda codes: self._items.take(pa.array(codes)))
        columns |= {name: pa.array(row) for name, row in zip(self._names, values, strict=True)}
        self._writer.write(pa.table(columns))
        self._parts.append((users, values, lists))

    def finish(self, strangers: int, replicates: int) -> Found:
        """Close the file; intervals of all users, and metrics and intervals of the segments.

        Args:
            strangers: Users without an index, whose values are 0. They have no segment.
            replicates: Of the bootstrap.
        """
        self._writer.close()
        found = Found()
        users = np.concatenate([part[0] for part in self._parts]) if self._parts else np.zeros(0, np.int64)
        if not len(users):
            return found
        values = np.concatenate([part[1] for part in self._parts], axis=1)
        lists = np.concatenate([part[2] for part in self._parts])
        units = unit_numbers([self._ids.take(pa.array(users))], self._column)
        rows = pa.table({name: column.take(pa.array(users)) for name, column in self._by.items()})
        segments = Segments.of_table(rows, list(self._by))
        for label, members in zip(segments.labels(), segments.members(rows), strict=True):
            means = Means(self._names, replicates)
            if members is None:
                means.update(values, units)
                # Apart from all ids: those are not known any more.
                means.update(np.zeros((len(self._names), strangers)), ~np.arange(strangers).astype(np.uint64))
            else:
                means.update(values[:, members], units[members])
            if means.units:
                metrics, intervals = functions_of_means(lambda values: values, means)
                found.add(metrics if label else {}, intervals, label)
                mine = slice(None) if members is None else members
                spreads = spreads_of_lists(lists[mine], units[mine], self._ks, len(self._items), replicates)
                # What the job measures of all users, and of the other models.
                coverage = {name: each for name, each in spreads.items() if name.startswith("coverage@")}
                add_spreads(found, coverage, means.units, label, only_intervals=not label)
            if label:
                found.add({"users": float(means.units)}, {}, label)
        return found


class RowUnits:
    """Rows with truth and predictions, as they are measured.

    Args:
        folder: Where `units.parquet` is written.
        evaluators: What measures them.
        ids: Columns that tell a row from all others; its number without.
        segments: Columns whose values are measured on their own.
        replicates: Of the bootstrap.
    """

    def __init__(
        self,
        folder: Path,
        evaluators: Sequence[RowEvaluator],
        ids: Sequence[str],
        segments: Segments,
        replicates: int,
    ) -> None:
        needed = [*ids, *segments.values, *(name for each in evaluators for name in each.columns())]
        self._columns = list(dict.fromkeys(needed))
        self._groups = RowGroups(evaluators, segments, ids, replicates)
        self._writer = UnitWriter(folder / UNITS, rows_header(evaluators, ids))

    def add(self, rows: pa.RecordBatch) -> None:
        """Take the next rows."""
        rows = rows.select(self._columns)
        self._groups.update(rows, self._groups.rows)
        self._writer.write(pa.Table.from_batches([rows]))

    def finish(self) -> Found:
        """Close the file; metrics and intervals."""
        self._writer.close()
        return self._groups.finish()
