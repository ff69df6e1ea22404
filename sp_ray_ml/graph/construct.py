"""From events to a typed graph: user→item edges with weights, item-item edges by co-occurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._co_occurrence import PairCounter
from sp_ray_ml.graph._rows import NEVER, UNTIMED, MergedRows, merged, sorted_rows
from sp_ray_ml.graph.graph import Edges, EdgeType, Graph, node_type
from sp_ray_ml.graph.settings import GraphSettings

if TYPE_CHECKING:
    import scipy.sparse

__all__ = ["ITEM_ITEM", "USER_ITEM", "build_graph", "canonical_order", "distinct_pairs", "pairs_without"]

USER_ITEM: EdgeType = ("user", "to", "item")
ITEM_ITEM: EdgeType = ("item", "with", "item")


def canonical_order(codes: NDArray[Any], time: NDArray[np.int64] | None, num_nodes: int) -> NDArray[np.int64]:
    """The canonical order of nodes: by first event's time, then by id; those without an event last, by id.

    Args:
        codes: Node of each event, [events]; codes ascend with the original ids.
        time: Time of each event, [events]; without it the order is by id alone.
        num_nodes: How many nodes there are.

    Returns:
        Codes in canonical order, [num_nodes]: entry `i` is the code of node `i`.
    """
    first = np.full(num_nodes, NEVER)
    if time is None:
        first[codes] = UNTIMED
    else:
        np.minimum.at(first, codes, time)
    return np.argsort(first, kind="stable")


def distinct_pairs(
    user: NDArray[np.int64], item: NDArray[np.int64], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """The distinct pairs of some events as ones, [users, items]."""
    import scipy.sparse

    events = (np.ones(len(user), np.float32), (user, item))
    pairs = scipy.sparse.csr_array(scipy.sparse.coo_array(events, shape=shape))
    pairs.sort_indices()
    pairs.data[:] = 1
    return pairs


def pairs_without(pairs: scipy.sparse.csr_array, seen: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Those of some pairs that are not among others, both as ones, [users, items]."""
    import scipy.sparse

    left = scipy.sparse.csr_array(pairs - pairs.multiply(seen))
    left.eliminate_zeros()
    left.sort_indices()
    return left


def build_graph(
    user: NDArray[Any],
    item: NDArray[Any],
    *,
    num_users: int,
    num_items: int,
    settings: GraphSettings | None = None,
    time: NDArray[np.int64] | None = None,
    rating: NDArray[np.float32] | None = None,
) -> Graph:
    """Build the graph of some events.

    Args:
        user: Node of each event, [events].
        item: Node of each event, [events].
        num_users: How many users, those without events included.
        num_items: How many items, likewise.
        settings: Weights, filters and co-occurrence.
        time: Nanoseconds since 1970 of each event; needed for `recency` and `co_occurrence`.
        rating: Of each event; needed for `weight: rating`.

    Raises:
        DataError: Times or ratings are needed and not given, or no edge is left.
    """
    settings = settings or GraphSettings()
    rows = sorted_rows(
        np.asarray(user), np.asarray(item).astype(node_type(num_items)), time,
        _weights(settings, len(user), time, rating), base=0, num_rows=num_users,
    )  # fmt: skip
    pairs = merged(rows)
    weight = pairs.total / pairs.events if settings.weight == "rating" else pairs.total
    keep = _of_degree(pairs, num_items, settings.min_user_degree, settings.min_item_degree)
    if not keep.any():
        raise DataError(
            f"no edge is left of {len(user)} events",
            where="graph",
            hint="Lower min_user_degree and min_item_degree",
        )
    edges = {
        USER_ITEM: Edges(
            np.concatenate([[0], np.cumsum(keep)])[pairs.indptr],
            pairs.other[keep],
            weight[keep].astype(np.float32),
            None if pairs.time is None else pairs.time[keep],
        )
    }
    if settings.co_occurrence is not None:
        if time is None:
            raise DataError("co_occurrence needs the time of each event", where="events.time")
        counter = PairCounter(num_items, settings.co_occurrence)
        counter.add(rows)
        parts = list(counter.finish())
        edges[ITEM_ITEM] = Edges(
            np.concatenate([[0], *(lengths for lengths, _, _ in parts)]).cumsum(),
            np.concatenate([other for _, other, _ in parts]).astype(node_type(num_items)),
            np.concatenate([count for _, _, count in parts]),
        )
    return Graph({"user": num_users, "item": num_items}, edges)


def _weights(
    settings: GraphSettings, count: int, time: NDArray[np.int64] | None, rating: NDArray[np.float32] | None
) -> NDArray[np.float64]:
    if settings.weight == "recency":
        if time is None:
            raise DataError("weight: recency needs the time of each event", where="events.time")
        half_life = settings.half_life.total_seconds() * 1e9
        return np.exp2(-(time.max(initial=0) - time) / half_life) if count else np.empty(0)
    if settings.weight == "rating":
        if rating is None:
            raise DataError("weight: rating needs a rating of each event", where="events.rating")
        return rating.astype(np.float64)
    return np.ones(count)


def _of_degree(pairs: MergedRows, num_items: int, min_user: int, min_item: int) -> NDArray[np.bool_]:
    """Which edges are left when users and items of a lower degree have none, repeated until both hold."""
    user = np.repeat(np.arange(len(pairs.indptr) - 1), np.diff(pairs.indptr))
    keep = np.ones(len(user), dtype=bool)
    while True:
        users = np.bincount(user[keep], minlength=len(pairs.indptr) - 1)
        items = np.bincount(pairs.other[keep], minlength=num_items)
        left = keep & (users[user] >= min_user) & (items[pairs.other] >= min_item)
        if left.sum() == keep.sum():
            return keep
        keep = left
