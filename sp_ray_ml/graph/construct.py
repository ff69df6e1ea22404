"""From events to a typed graph: user→item edges with weights, item-item edges by co-occurrence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph.graph import Edges, EdgeType, Graph
from sp_ray_ml.graph.settings import CoOccurrence, GraphSettings

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
    first = np.full(num_nodes, np.iinfo(np.int64).max)
    if time is None:
        first[codes] = 0
    else:
        np.minimum.at(first, codes, time)
    return np.argsort(first, kind="stable")


def distinct_pairs(
    user: NDArray[np.int64], item: NDArray[np.int64], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """The distinct pairs of some events as ones, [users, items]."""
    pairs = _sum_pairs(user, item, np.ones(len(user), np.float32), shape)
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
    events = _weights(settings, len(user), time, rating)
    pairs = _sum_pairs(user, item, events, (num_users, num_items))
    if settings.weight == "rating":
        pairs.data /= _sum_pairs(user, item, np.ones(len(user)), (num_users, num_items)).data
    pairs = _filter_degrees(pairs, settings.min_user_degree, settings.min_item_degree)
    if not pairs.nnz:
        raise DataError(
            f"no edge is left of {len(user)} events",
            where="graph",
            hint="Lower min_user_degree and min_item_degree",
        )
    edges = {USER_ITEM: _to_edges(pairs, None if time is None else _first_times(user, item, time, pairs))}
    if settings.co_occurrence is not None:
        if time is None:
            raise DataError("co_occurrence needs the time of each event", where="events.time")
        edges[ITEM_ITEM] = _to_edges(_co_occurrence(user, item, time, num_items, settings.co_occurrence))
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


def _sum_pairs(
    user: NDArray[Any], item: NDArray[Any], weight: NDArray[np.floating[Any]], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    import scipy.sparse

    pairs = scipy.sparse.csr_array(scipy.sparse.coo_array((weight, (user, item)), shape=shape))
    pairs.sort_indices()
    return pairs


def _filter_degrees(pairs: scipy.sparse.csr_array, min_user: int, min_item: int) -> scipy.sparse.csr_array:
    import scipy.sparse

    while True:
        users = np.diff(pairs.indptr)
        items = np.bincount(pairs.indices, minlength=pairs.shape[1])
        rows = np.repeat(np.arange(pairs.shape[0]), users)
        keep = (users[rows] >= min_user) & (items[pairs.indices] >= min_item)
        if keep.all():
            return pairs
        kept = scipy.sparse.coo_array(
            (pairs.data[keep], (rows[keep], pairs.indices[keep])), shape=pairs.shape
        )
        pairs = scipy.sparse.csr_array(kept)


def _co_occurrence(
    user: NDArray[Any], item: NDArray[Any], time: NDArray[np.int64], num_items: int, settings: CoOccurrence
) -> scipy.sparse.csr_array:
    """Pairs of one user's events within the window, `neighbors` events apart at most: linear in the events."""
    import scipy.sparse

    order = np.lexsort((item, time, user))
    user, item, time = user[order], item[order], time[order]
    window = int(settings.window.total_seconds() * 1e9)
    total = scipy.sparse.csr_array((num_items, num_items), dtype=np.float64)
    for lag in range(1, min(settings.neighbors, len(user) - 1) + 1):
        near = (user[lag:] == user[:-lag]) & (time[lag:] - time[:-lag] <= window)
        if not near.any():
            break
        first, second = item[:-lag][near], item[lag:][near]
        different = first != second
        first, second = first[different], second[different]
        both = (np.concatenate([first, second]), np.concatenate([second, first]))
        ones = np.ones(len(both[0]))
        total = total + scipy.sparse.csr_array(scipy.sparse.coo_array((ones, both), shape=total.shape))
    return _top_per_row(scipy.sparse.csr_array(total), settings.top)


def _top_per_row(matrix: scipy.sparse.csr_array, top: int) -> scipy.sparse.csr_array:
    """The `top` largest entries of each row; among equal ones those of the lower column."""
    import scipy.sparse

    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    rank = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    keep = order[rank < top]
    kept = scipy.sparse.coo_array((matrix.data[keep], (rows[keep], matrix.indices[keep])), shape=matrix.shape)
    result = scipy.sparse.csr_array(kept)
    result.sort_indices()
    return result


def _first_times(
    user: NDArray[Any], item: NDArray[Any], time: NDArray[np.int64], pairs: scipy.sparse.csr_array
) -> NDArray[np.int64]:
    num_items = pairs.shape[1]
    key = user.astype(np.int64) * num_items + item
    order = np.lexsort((time, key))
    distinct, start = np.unique(key[order], return_index=True)
    rows = np.repeat(np.arange(pairs.shape[0], dtype=np.int64), np.diff(pairs.indptr))
    return time[order][start][np.searchsorted(distinct, rows * num_items + pairs.indices)]


def _to_edges(matrix: scipy.sparse.csr_array, time: NDArray[np.int64] | None = None) -> Edges:
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    return Edges(indptr, indices, matrix.data.astype(np.float32), time)
