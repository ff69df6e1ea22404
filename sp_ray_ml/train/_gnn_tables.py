"""Trainers of recommenders on tables: events become graphs, and what was learned a sealed recommender."""

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
from sp_ray_ml.train._renewal import History, renewal_of
from sp_ray_ml.train.table import TrainResult
from sp_ray_ml.train.two_tower_recommender import recommender_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sp_ray_ml.graph.graph import Graph
    from sp_ray_ml.train.pyg import PyGTrainer

__all__ = ["EventColumns", "EventGraphs", "codes_of", "event_graphs", "fit_tables", "read_events"]


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

    data = event_graphs(train, validation, columns)
    result = trainer.fit(
        data.train,
        data.validation,
        full=data.full,
        seed=seed,
        folder=folder / "training",
        on_epoch=on_epoch,
    )
    recommender = recommender_of(
        result,
        {},
        users=data.ids["user"],
        items=data.ids["item"],
        seen=data.seen,
        columns=(columns.user, columns.item),
        renewal=renewal_of(
            result, trainer, data.history, preprocessors={}, complete_before=data.complete_before
        ),
    )
    recommender.save(
        folder / "predictor",
        about={"metrics": dict(result.metrics), "environment": environment_tags(), **(about or {})},
    )
    return TrainResult(result.metrics, result.history, folder)


@dataclass(frozen=True)
class EventGraphs:
    """Events as graphs over one set of nodes.

    Attributes:
        ids: Original ids by `user` and `item`: a node is its place among them.
        train: Graph of the events that are learned from.
        full: Graph of those to validate on, too.
        validation: Held-out pairs, or None.
        seen: What each user has had in either.
        history: The events of `full`.
    """

    ids: Mapping[str, pa.Array]
    train: Graph
    full: Graph
    validation: scipy.sparse.csr_array | None
    seen: scipy.sparse.csr_array
    history: History

    @property
    def complete_before(self) -> int | None:
        """Nanoseconds since 1970: the history has all events before that time."""
        return None if self.history.time is None else int(self.history.time.max())


def event_graphs(
    train: Any, validation: Any, columns: EventColumns, more: Mapping[str, pa.ChunkedArray] | None = None
) -> EventGraphs:
    """Turn events into graphs.

    Args:
        train: As in `fit_tables`.
        validation: Likewise.
        columns: Likewise.
        more: By `user` and `item`, ids that are nodes also without an event.

    Raises:
        ColumnNotFoundError: As in `fit_tables`.
        DataError: Likewise.
    """
    events = [read_events(as_source(train, "train"), columns)]
    if validation is not None:
        events.append(read_events(as_source(validation, "validation"), columns))
    time = (
        None
        if columns.time is None
        else [nanoseconds(table[columns.time], columns.time, "events") for table in events]
    )
    ids, place = {}, {}
    for name, column in (("user", columns.user), ("item", columns.item)):
        values, codes = codes_of([table[column] for table in events], column, (more or {}).get(name))
        order = canonical_order(
            np.concatenate(codes), None if time is None else np.concatenate(time), len(values)
        )
        ids[name] = values.take(pa.array(order))
        position = np.argsort(order)
        place[name] = [position[each] for each in codes]
    shape = (len(ids["user"]), len(ids["item"]))
    pairs = list(zip(place["user"], place["item"], strict=True))

    def graph(parts: int) -> Graph:
        return build_graph(
            np.concatenate([pair[0] for pair in pairs[:parts]]),
            np.concatenate([pair[1] for pair in pairs[:parts]]),
            time=None if time is None else np.concatenate(time[:parts]),
            num_users=shape[0],
            num_items=shape[1],
        )

    seen = distinct_pairs(*pairs[0], shape)
    history = History(
        np.concatenate(place["user"]),
        np.concatenate(place["item"]),
        None if time is None else np.concatenate(time),
    )
    if validation is None:
        return EventGraphs(ids, graph(1), graph(1), None, seen, history)
    held_out = pairs_without(distinct_pairs(*pairs[1], shape), seen)
    return EventGraphs(ids, graph(1), graph(2), held_out, scipy.sparse.csr_array(seen + held_out), history)


def read_events(source: Source, columns: EventColumns) -> pa.Table:
    """Events with these columns.

    Raises:
        ColumnNotFoundError: One is not there.
        DataError: No events, a missing value, ids that are neither text nor whole numbers.
    """
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


def codes_of(
    given: list[pa.ChunkedArray], column: str, more: pa.ChunkedArray | None
) -> tuple[pa.Array, list[NDArray[np.int64]]]:
    """The distinct ids, ascending, and the place of each event's id among them, by table."""
    columns = [plain(each.combine_chunks()) for each in (given if more is None else [*given, more])]
    kind = pa.string() if is_text(columns[0].type) else pa.int64()
    try:
        found = [values.cast(kind) for values in columns]
    except pa.ArrowInvalid as error:
        raise DataError(f"the ids are not all {kind}: {error}", where=column) from None
    ids = pc.unique(pa.chunked_array(found))
    ids = ids.take(pc.array_sort_indices(ids))
    return ids, [pc.index_in(values, ids).to_numpy().astype(np.int64) for values in found[: len(given)]]
