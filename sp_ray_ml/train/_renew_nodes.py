"""The nodes and events of a renewed graph: those of the training in their order, and what came since.

A node that left its table is gone, and its events with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.construct import canonical_order
from sp_ray_ml.train._gnn_data import ITEM, USER
from sp_ray_ml.train._renewal import History, Renewal

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EARLIEST", "Arrived", "Nodes", "as_sealed", "nodes_and_events"]

EARLIEST = int(np.iinfo(np.int64).min)
"""Of `Arrived.since`: all events that there are, and nothing is left of the sealed ones."""


@dataclass(frozen=True)
class Arrived:
    """What there is now.

    Attributes:
        ids: By node type, ascending: of the node table, or of the events where there is none.
        events: Events, `user` and `item` being places in `ids`.
        rows: By node type, the node table in the order of `ids`, where there is one.
        titles: Of the items, in the order of `ids`.
        since: Nanoseconds since 1970: `events` has all of those from that time on, and takes the place of the sealed
            ones from then on. None if the events come on top of the sealed ones.
    """

    ids: Mapping[str, pa.Array]
    events: History
    rows: Mapping[str, pa.Table]
    titles: pa.Array | None = None
    since: int | None = None


@dataclass(frozen=True)
class Nodes:
    """The nodes of a type as they are now.

    Attributes:
        ids: In their order.
        place: int64 [nodes], each one's place among the sealed ones; -1 of one that is new.
        of_sealed: int64 [sealed], the place here; -1 of one that is gone.
        of_arrived: int64 [arrived], the place here.
        trained: How many of the first were there at the training.
    """

    ids: pa.Array
    place: NDArray[np.int64]
    of_sealed: NDArray[np.int64]
    of_arrived: NDArray[np.int64]
    trained: int

    @property
    def as_sealed(self) -> bool:
        """Whether nobody came or went."""
        return len(self.place) == len(self.of_sealed) and bool((self.place >= 0).all())

    def gather(self, values: NDArray[Any]) -> NDArray[Any]:
        """What is kept of the sealed nodes, [sealed, …], for those of now; zero of new ones."""
        found = values[np.maximum(self.place, 0)] if len(values) else np.zeros((len(self.place), *values.shape[1:]), values.dtype)  # fmt: skip
        found[self.place < 0] = 0
        return found


def nodes_and_events(
    renewal: Renewal,
    sealed: Mapping[str, pa.Array],
    arrived: Arrived,
    unknown: Literal["error", "drop"],
) -> tuple[dict[str, Nodes], History]:
    """The nodes of now by type, and all events by node.

    Args:
        renewal: What was sealed.
        sealed: By node type, the ids of the sealed nodes.
        arrived: What there is now.
        unknown: What becomes of sealed events of a node that is gone.

    Raises:
        DataError: Ids of another type, a node that is gone, events without a time or rating.
    """
    history = _before(renewal.history, arrived.since)
    here = {name: _still_there(sealed[name], arrived, name) for name in sealed}
    _check_gone(history, here, unknown)
    history = _rows(history, here[USER][history.user] & here[ITEM][history.item])
    nodes = {
        name: _nodes(sealed[name], here[name], arrived, history, renewal.trained[name], name)
        for name in sealed
    }
    return nodes, _joined(history, arrived.events, nodes)


def _before(history: History, since: int | None) -> History:
    if since is None:
        return history
    if history.time is None or since == EARLIEST:
        return _rows(history, np.zeros(len(history), dtype=bool))
    return _rows(history, history.time < since)


def _rows(history: History, kept: NDArray[np.bool_]) -> History:
    return History(*(None if each is None else each[kept] for each in vars(history).values()))  # type: ignore[arg-type]


def _still_there(sealed: pa.Array, arrived: Arrived, name: str) -> NDArray[np.bool_]:
    """Which sealed nodes are still in their table: all of them where there is none."""
    if name not in arrived.rows:
        return np.ones(len(sealed), dtype=bool)
    there = pc.is_valid(pc.index_in(sealed, as_sealed(arrived.ids[name], sealed.type, name)))
    return there.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def as_sealed(ids: pa.Array, kind: pa.DataType, name: str) -> pa.Array:
    """Ids of now in the type of the sealed ones.

    Raises:
        DataError: They cannot be.
    """
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if text == pa.types.is_integer(ids.type):
        raise DataError(
            f"the {name}s' ids were {kind} at the training and are {ids.type} now",
            where=f"{name} ids",
            hint="Cast them to what they were, for instance with a query in place of the table, or train again",
        )
    try:
        return ids.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"the {name}s' ids are no {kind}: {error}", where=f"{name} ids") from None


def _check_gone(
    history: History, here: Mapping[str, NDArray[np.bool_]], unknown: Literal["error", "drop"]
) -> None:
    if unknown == "drop":
        return
    for name, codes in ((USER, history.user), (ITEM, history.item)):
        gone = int((~here[name][codes]).sum())
        if gone:
            raise DataError(
                f"{gone:,} events of the training are of {int((~here[name]).sum()):,} {name}s that their table no "
                "longer has",
                where=f"nodes.{name}",
                hint="Put them back, or set events.unknown: drop: then they and their events are left out",
            )


def _nodes(
    sealed: pa.Array,
    here: NDArray[np.bool_],
    arrived: Arrived,
    history: History,
    trained: int,
    name: str,
) -> Nodes:
    ids = as_sealed(arrived.ids[name], sealed.type, name)
    first = np.flatnonzero(here[:trained])
    at_training = pc.is_valid(pc.index_in(ids, sealed.take(pa.array(first))))
    fresh = ids.filter(pc.invert(at_training))
    later = pc.unique(
        pa.concat_arrays([sealed.take(pa.array(trained + np.flatnonzero(here[trained:]))), fresh])
    )
    later = later.take(pc.array_sort_indices(later))
    order = _canonical(later, sealed, ids, arrived.events, history, name)
    all_ids = pa.concat_arrays([sealed.take(pa.array(first)), later.take(pa.array(order))])
    return Nodes(
        all_ids,
        _index(all_ids, sealed),
        _index(sealed, all_ids),
        _index(ids, all_ids),
        len(first),
    )


def _canonical(
    later: pa.Array, sealed: pa.Array, ids: pa.Array, events: History, history: History, name: str
) -> NDArray[np.int64]:
    """The canonical order of the nodes that came after the training, of their events before and since."""
    codes, times = [], []
    for part, names in ((history, sealed), (events, ids)):
        place = _index(names, later)[getattr(part, name)]
        there = place >= 0
        codes.append(place[there])
        if part.time is not None:
            times.append(part.time[there])
    time = np.concatenate(times) if len(times) == len(codes) else None
    return canonical_order(np.concatenate(codes), time, len(later))


def _index(wanted: pa.Array, among: pa.Array) -> NDArray[np.int64]:
    """int64 [wanted], -1 where it is not among them."""
    return pc.fill_null(pc.index_in(wanted, among), -1).to_numpy(zero_copy_only=False).astype(np.int64)  # type: ignore[no-any-return]


def _joined(history: History, events: History, nodes: Mapping[str, Nodes]) -> History:
    """The events that are kept and those that came, by the nodes of now."""
    wanted = [name for name in ("time", "rating") if getattr(history, name) is not None]
    for name in wanted:
        if getattr(events, name) is None:
            raise DataError(f"the events have no {name}, those of the training had", where=f"events.{name}")
    more = {
        name: np.concatenate([getattr(history, name), getattr(events, name)]) if name in wanted else None
        for name in ("time", "rating")
    }
    user = np.concatenate([nodes[USER].of_sealed[history.user], nodes[USER].of_arrived[events.user]])
    item = np.concatenate([nodes[ITEM].of_sealed[history.item], nodes[ITEM].of_arrived[events.item]])
    return History(user.astype(history.user.dtype), item.astype(history.item.dtype), **more)
