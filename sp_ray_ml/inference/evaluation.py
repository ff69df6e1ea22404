"""`evaluate_predictions`: metrics of tables of predictions of any size, with intervals, by segment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sp_ray_ml.data.source import BLOCK_ROWS, Source, as_source, require_columns
from sp_ray_ml.errors import ConfigError, DataError
from sp_ray_ml.graph._external import in_order
from sp_ray_ml.inference._evaluation_groups import Found, RowGroups, Segments
from sp_ray_ml.inference.evaluators import Evaluator, Ranking, RowEvaluator
from sp_ray_ml.metrics.means import check_draws

__all__ = ["Evaluation", "evaluate_predictions"]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: By name; of a segment with a suffix: `ndcg@20`, `ndcg@20/country=DE`, and `users` or `rows`.
        intervals: Intervals of 95 % by the same names, where there are such.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


def evaluate_predictions(
    predictions: Any,
    evaluators: Evaluator | Sequence[Evaluator],
    *,
    truth: Any = None,
    on: str | Sequence[str] = (),
    items: Any = None,
    users: Any = None,
    by: Sequence[str] = (),
    bootstrap: int = 0,
    seed: int = 0,
    units: str | os.PathLike[str] | None = None,
) -> Evaluation:
    """Measure predictions against the truth, in memory that does not grow with the rows.

    However the rows come, whole or cut, from a table, files or a Ray Dataset, the result is the same to the last bit.
    Lists of a Ray Dataset are measured in Ray's tasks, and so are its rows where they have their truth with them.

    Args:
        predictions: Rows: whatever `as_source` takes. For a `Ranking`: user, item and rank or score. Otherwise the
            columns of the evaluators, the truth among them unless it is a table of its own.
        evaluators: One or several; a `Ranking` stands alone.
        truth: Of a `Ranking`: user and item, a row for each test item; without it only what needs no truth is
            measured. Otherwise rows with `on` and the true values.
        on: Columns that tell a row from all others: by them truth is found, and the bootstrap draws. Without them a
            row's number does.
        items: Of a `Ranking`: the catalogue, with popularity and features.
        users: Of a `Ranking`: users with the columns `by`.
        by: Columns whose values are measured on their own; of a column, the 50 most frequent ones.
        bootstrap: Replicates for the intervals, 200 for instance; 0 for none.
        seed: Of the bootstrap.
        units: Parquet file for what `compare_units` needs: the values of each user, or each row's truth and prediction.

    Raises:
        ColumnNotFoundError: A column is not there.
        ConfigError: Evaluators that do not go together, or two that measure the same; no such bootstrap or seed.
        DataError: No rows, a value that is missing, a row without truth, an item twice in a list.
    """
    chosen = [evaluators] if isinstance(evaluators, Evaluator) else list(evaluators)
    ids = [on] if isinstance(on, str) else list(on)
    if not chosen:
        raise ConfigError("no evaluator is given", where="evaluators")
    check_draws(bootstrap, seed)
    rankings = [each for each in chosen if isinstance(each, Ranking)]
    if rankings:
        if len(chosen) > 1:
            raise ConfigError("a ranking is measured alone: its tables are others", where="evaluators")
        from sp_ray_ml.inference._evaluation_lists import ListInputs

        if _is_ray(predictions):
            from sp_ray_ml.inference._evaluation_ray_lists import evaluate_lists_on_ray as evaluate_lists
        else:
            from sp_ray_ml.inference._evaluation_ranking import evaluate_lists
        source = as_source(predictions, "predictions")
        other = {"truth": truth, "items": items, "users": users}
        sources = {name: None if each is None else as_source(each, name) for name, each in other.items()}
        found = evaluate_lists(
            ListInputs(
                rankings[0], source, **sources, by=list(by), bootstrap=bootstrap, seed=seed, units=units
            )
        )
        return Evaluation(found.metrics, found.intervals)
    if items is not None or users is not None:
        raise ConfigError("tables of items and users are those of a ranking", where="evaluators")
    rows = [each for each in chosen if isinstance(each, RowEvaluator)]
    source = as_source(predictions, "predictions")
    if truth is not None:
        from sp_ray_ml.inference._evaluation_join import joined

        if not ids:
            raise ConfigError("truth of its own is found by ids: name their columns", where="on")
        source = joined(source, as_source(truth, "truth"), ids)
    found = _measured_rows(
        predictions if truth is None else None, source, rows, ids, list(by), bootstrap, seed, units
    )
    return Evaluation(found.metrics, found.intervals)


def _measured_rows(
    given: Any,
    source: Source,
    evaluators: list[RowEvaluator],
    ids: list[str],
    by: list[str],
    replicates: int,
    seed: int,
    units: str | os.PathLike[str] | None,
) -> Found:
    columns = list(dict.fromkeys([*ids, *by, *(name for each in evaluators for name in each.columns())]))
    require_columns(source.schema, columns, source.name)
    source = source.select(columns)
    segments = Segments.of(source, by)
    groups = RowGroups(evaluators, segments, ids, replicates, seed)
    # Tasks do not know the numbers of their rows, which the bootstrap draws by where there are no ids.
    numbered = units is not None or (replicates and not ids)
    if _is_ray(given) and not numbered:
        from sp_ray_ml.inference._evaluation_ray import measure_blocks

        measure_blocks(given.select_columns(columns), groups)
    else:
        _measure(source, groups, None if units is None else Path(units), evaluators, ids)
    if not groups.rows:
        raise DataError("there is no row to measure on", where=source.name)
    return groups.finish()


def _is_ray(given: Any) -> bool:
    return type(given).__module__.partition(".")[0] == "ray"


def _measure(
    source: Source, groups: RowGroups, units: Path | None, evaluators: list[RowEvaluator], ids: list[str]
) -> None:
    """Blocks in threads, each with an accumulator of its own: they add up to the same bits in any order."""
    from sp_ray_ml.inference._evaluation_units import UnitWriter, rows_header

    threads = len(os.sched_getaffinity(0))
    idle = [groups.empty(threads) for _ in range(threads)]

    def run(block: tuple[int, pa.RecordBatch]) -> pa.RecordBatch:
        mine = idle.pop()
        try:
            mine.update(block[1], block[0])
        finally:
            idle.append(mine)
        return block[1]

    def numbered() -> Iterator[tuple[int, pa.RecordBatch]]:
        at = 0
        for block in source.blocks(BLOCK_ROWS):
            yield at, block
            at += block.num_rows

    with (
        nullcontext() if units is None else UnitWriter(units, rows_header(evaluators, ids)) as writer,
        ThreadPoolExecutor(threads) as pool,
    ):
        for block in in_order(pool, run, numbered(), threads - 1):
            if writer is not None:
                writer.write(pa.Table.from_batches([block]))
    for each in idle:
        groups.merge(each)
