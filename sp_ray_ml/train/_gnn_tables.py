"""`PyGTrainer.fit` on tables: events become graphs, and what was learned a sealed recommender."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from sp_ray_ml.data._columns import is_text, nanoseconds, plain, plain_type
from sp_ray_ml.data.source import Source, as_source, require_columns
from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.construct import build_graph, canonical_order, distinct_pairs, pairs_without
from sp_ray_ml.train.recommender import Recommender
from sp_ray_ml.train.table import TrainResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.train.pyg import PyGTrainer

__all__ = ["EventColumns", "fit_tables"]


@dataclass(frozen=True)
class EventColumns:
    """The columns of the events: who, what, and when."""

    user: str
    item: str
    time: str | None


def fit_tables(
    trainer: PyGTrainer,
    train: Any,
    validation: Any,
    columns: EventColumns,
    *,
    seed: int,
    folder: Path,
    on_epoch: Callable[[Mapping[str, float]], None],
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Learn to recommend from events, and seal the recommender into `folder/predictor`.

    Args:
        trainer: What is learned, and how.
        train: Events, whatever `as_source` takes; ids are text or whole numbers.
        validation: Later events, which choose the epoch; those of users or items without an event in `train` say
            nothing. None trains for all epochs.
        columns: Their columns.
        seed: The same seed on the same machine gives the same numbers.
        folder: Keeps the checkpoints and the predictor.
        on_epoch: Called with the metrics of each epoch.
        about: More for the predictor's manifest.

    Raises:
        ColumnNotFoundError: A column is not there.
        DataError: No events, ids of another type, a missing id or time.
    """
    from sp_ray_ml.tracking import environment_tags

    events = [_read(as_source(train, "train"), columns)]
    if validation is not None:
        events.append(_read(as_source(validation, "validation"), columns))
    users, user = _codes(events, columns.user)
    items, item = _codes(events, columns.item)
    time = (
        None
        if columns.time is None
        else [nanoseconds(table[columns.time], columns.time, "events") for table in events]
    )
    ids, position = [], []
    for values, codes in ((users, user), (items, item)):
        order = canonical_order(
            np.concatenate(codes), None if time is None else np.concatenate(time), len(values)
        )
        ids.append(values.take(pa.array(order)))
        position.append(np.argsort(order))
    shape = (len(users), len(items))
    pairs = [(position[0][a], position[1][b]) for a, b in zip(user, item, strict=True)]

    def graph(parts: int) -> Any:
        return build_graph(
            np.concatenate([pair[0] for pair in pairs[:parts]]),
            np.concatenate([pair[1] for pair in pairs[:parts]]),
            time=None if time is None else np.concatenate(time[:parts]),
            num_users=shape[0],
            num_items=shape[1],
        )

    seen = distinct_pairs(*pairs[0], shape)
    held_out = None
    if validation is not None:
        held_out = pairs_without(distinct_pairs(*pairs[1], shape), seen)
        both = scipy.sparse.csr_array(seen + held_out)
    result = trainer.fit(
        graph(1), held_out, full=graph(len(pairs)), seed=seed, folder=folder / "training", on_epoch=on_epoch
    )
    recommender = Recommender(
        users=ids[0],
        items=ids[1],
        user_vectors=result.user_vectors,
        item_vectors=result.item_vectors,
        item_bias=result.item_bias,
        embedding_dim=result.embedding_dim,
        seen=seen if held_out is None else both,
        columns=(columns.user, columns.item),
    )
    recommender.save(
        folder / "predictor",
        weights=result.weights,
        about={"metrics": dict(result.metrics), "environment": environment_tags(), **(about or {})},
    )
    return TrainResult(result.metrics, result.history, folder)


def _read(source: Source, columns: EventColumns) -> pa.Table:
    names = [name for name in (columns.user, columns.item, columns.time) if name]
    table = source.select(require_columns(source.schema, names, source.name)).to_arrow()
    if not table.num_rows:
        raise DataError("there are no events", where=source.name)
    for name in names:
        if missing := table[name].null_count:
            raise DataError(f"{missing} of {table.num_rows} events have no {name}", where=source.name)
    for name in (columns.user, columns.item):
        kind = plain_type(table.schema.field(name).type)
        if not is_text(kind) and not pa.types.is_integer(kind):
            raise DataError(
                f"ids must be text or whole numbers, these are {kind}", where=f"{source.name}.{name}"
            )
    return table


def _codes(events: list[pa.Table], column: str) -> tuple[pa.Array, list[NDArray[np.int64]]]:
    """The distinct ids, ascending, and the place of each event's id among them, by table."""
    columns = [plain(table[column].combine_chunks()) for table in events]
    kind = pa.string() if is_text(columns[0].type) else pa.int64()
    try:
        found = [values.cast(kind) for values in columns]
    except pa.ArrowInvalid as error:
        raise DataError(f"the ids are not all {kind}: {error}", where=column) from None
    ids = pc.unique(pa.chunked_array(found))
    ids = ids.take(pc.array_sort_indices(ids))
    return ids, [pc.index_in(values, ids).to_numpy().astype(np.int64) for values in found]
