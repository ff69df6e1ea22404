"""`compare_units`: two models on the same users or rows, the difference of each metric with its interval."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sp_ray_ml.config import near_match
from sp_ray_ml.data._columns import plain, plain_type
from sp_ray_ml.errors import ColumnNotFoundError, DataError
from sp_ray_ml.inference._compare_parts import Difference, ListsOfBoth, RowsOfBoth
from sp_ray_ml.inference._evaluation_groups import Segments
from sp_ray_ml.inference._evaluation_ids import check_kinds, unit_numbers
from sp_ray_ml.inference._evaluation_units import RECOMMENDED, TEST_DIGEST, TEST_ITEMS, units_of
from sp_ray_ml.inference.evaluators import Evaluator, RowEvaluator
from sp_ray_ml.metrics.means import check_draws

__all__ = ["Comparison", "Difference", "compare_units"]


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
        ConfigError: No such bootstrap or seed.
        StorageError: A file is missing or another's.
        DataError: They measured something else, share nobody, hold different truths, or an id twice.
        ColumnNotFoundError: A column of `by` is not there.
    """
    check_draws(bootstrap, seed)
    kept_a, kept_b = units_of(Path(a)), units_of(Path(b))
    (of_a, ids_a, metrics_a, table_a), (of_b, ids_b, metrics_b, table_b) = (
        (each.evaluators, each.ids, each.metrics, each.table) for each in (kept_a, kept_b)
    )
    lists, pairs = bool(metrics_a), _pairs(of_a, of_b)
    if bool(metrics_b) != lists or not (lists or pairs):
        raise DataError(
            f"the runs measured different things: {_kind(of_a, metrics_a)}, and {_kind(of_b, metrics_b)}",
            hint="Compare runs of one kind: sp-ray get runs",
        )
    of = "users" if lists else "rows"
    if ids_a != ids_b:
        both = ", and by ".join(", ".join(ids) or "their place" for ids in (ids_a, ids_b))
        raise DataError(
            f"the runs tell {of} apart by {both}, so that nobody knows which are the same",
            hint="Evaluate both with the same ids",
        )
    if lists and not set(metrics_a) & set(metrics_b):
        lengths = ", and k = ".join(", ".join(map(str, each.k)) for each in (kept_a, kept_b))
        raise DataError(
            f"the runs have no metric in common: k = {lengths}",
            hint="Evaluate both with one k that is the same (evaluate.k); the other steps are kept",
        )
    for column in by:
        if column not in table_a.column_names:
            there = [
                name
                for name in table_a.column_names
                if name not in {*ids_a, *metrics_a, TEST_ITEMS, TEST_DIGEST, RECOMMENDED}
            ]
            raise ColumnNotFoundError(
                f"the run's evaluation kept no column {column!r}{near_match(column, there)}",
                where="by",
                hint=f"It kept: {', '.join(there) or 'none'}. Name it in evaluate.by, and run again",
            )
    table_a, table_b, notes = _shared(table_a, table_b, ids_a, of)
    if lists:
        # Files of earlier versions have no digest.
        alike = [TEST_ITEMS, *({TEST_DIGEST} & {*table_a.column_names} & {*table_b.column_names})]
        other = np.any([table_a[name].to_numpy() != table_b[name].to_numpy() for name in alike], axis=0)
        if other.any():
            raise DataError(
                f"the runs have different test items for the same users, {int(other.sum()):,} of {len(other):,}, so that "
                "nothing can be compared",
                hint="Evaluate both on the same split of the same events: a split by time moves when there are new ones",
            )
        alone = [name for name in (*metrics_a, *metrics_b) if (name in metrics_a) != (name in metrics_b)]
        notes += [f"only one of the runs has {', '.join(alone)}"] if alone else []
        parts: list[Any] = [ListsOfBoth(kept_a._replace(table=table_a), kept_b._replace(table=table_b))]
    else:
        parts = [RowsOfBoth(x, y, table_a, table_b) for x, y in pairs]
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
    return Comparison(differences, len(units), of, notes, spread)


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
    check_kinds(ids, a.schema, b.schema, "compare")
    names = [f"id {number}" for number in range(len(ids))]  # unlike the columns beside them
    keys_a, keys_b = (
        _keys(each, other, ids, names).append_column(place, pa.array(np.arange(each.num_rows)))
        for each, other, place in ((a, b, "a"), (b, a, "b"))
    )
    both = keys_a.join(keys_b, names, join_type="inner").sort_by("a")
    if not both.num_rows:
        raise DataError(
            f"the runs share none of their {a.num_rows:,} and {b.num_rows:,} {of}, so that nothing can be compared",
            hint="Evaluate both on the same split",
        )
    left = a.num_rows + b.num_rows - 2 * both.num_rows
    notes = [f"{left:,} {of} that only one of the runs was measured on are left out"] if left else []
    return a.take(both["a"]), b.take(both["b"]), notes


def _keys(table: pa.Table, other: pa.Table, ids: Sequence[str], names: Sequence[str]) -> pa.Table:
    """The ids, those that differ in width only as the other's are.

    Raises:
        DataError: One is there more than once.
    """
    columns = []
    for name in ids:
        mine = plain(table[name].combine_chunks())
        if mine.type != plain_type(other.schema.field(name).type):
            mine = mine.cast(pa.int64() if pa.types.is_integer(mine.type) else pa.large_string())
        columns.append(mine)
    keys = pa.table(columns, list(names))
    counts = keys.group_by(list(names)).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1)).slice(0, 1)
    if doubled.num_rows:
        row = doubled.to_pylist()[0]
        raise DataError(
            f"the row {', '.join(f'{name} {row[key]}' for name, key in zip(ids, names, strict=True))} is there "
            f"{row['count_all']} times in one of the runs, so that nobody knows which are the same",
            hint="Evaluate both with ids that tell each row from all others",
        )
    return keys
