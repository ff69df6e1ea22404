"""Machine code of sharded graphs: which shard has a node, what a hop's replies are put together to, edge-cut streaming."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import float64, int32, int64, uint8, uint16, uint32, uint64
from numba import types as t

from sp_ray_ml._compiled import compiled
from sp_ray_ml.graph._compiled import helper, peek, prefetch, read, write
from sp_ray_ml.graph._sampling_kernel import GOLDEN, mix

__all__ = [
    "assign",
    "count_shards",
    "grouped",
    "hash_places",
    "hot_insert",
    "hot_lookup",
    "merge_rows",
    "pick_ids",
    "place_edges",
    "scatter_rows",
]

_AHEAD = 16
_EDGES_AHEAD = 96


@helper
def _mixed(number: Any) -> Any:
    """The finalizer of SplitMix64 (Steele et al. 2014)."""
    return mix(np.uint64(number) * GOLDEN)


@compiled(t.void(read(int64), int64, write(int32), write(int64)))
def hash_places(nodes: Any, shards: Any, shard: Any, row: Any) -> None:
    """Each node's shard and row: of `shards` nodes in succession every shard has one, which by a hash of their block.

    So shards differ by one node at the most, and no table is needed to find a node.
    """
    for i in range(nodes.shape[0]):
        block = nodes[i] // shards
        turn = np.int64(_mixed(block) % np.uint64(shards))
        shard[i] = np.int32((nodes[i] - block * shards + turn) % shards)
        row[i] = block


@compiled(t.void(read(int32), read(int64), write(int64), write(int64), write(int64)))
def grouped(shard: Any, row: Any, begin: Any, where: Any, rows: Any) -> None:
    """Sort places by shard, stably: shard `s` has the places `where[begin[s]:begin[s + 1]]`, and their `rows`.

    `begin` is int64 [shards + 2] of zeros.
    """
    for i in range(shard.shape[0]):
        begin[shard[i] + 2] += 1
    for s in range(2, begin.shape[0]):
        begin[s] += begin[s - 1]
    for i in range(shard.shape[0]):
        at = begin[shard[i] + 1]
        begin[shard[i] + 1] = at + 1
        where[at] = i
        rows[at] = row[i]


def _merge_signature(source: Any, edge: Any) -> Any:
    return t.void(
        read(int32), write(int64), write(int64), read(uint64, 2), read(int32), read(source), read(int64), read(edge),
        int64, int64, write(int64), write(int64), write(int64),
    )  # fmt: skip


@compiled(*(_merge_signature(source, edge) for source in (int32, int64) for edge in (uint16, int32, int64)))
def merge_rows(
    shard: Any, row: Any, at: Any, where: Any, counts: Any, source: Any, first_edge: Any, edge: Any,
    first: Any, to: Any, out_edge: Any, out_source: Any, out_owner: Any,
) -> None:  # fmt: skip
    """Put together what shards have found, out of their messages, in the order of the rows.

    Row `i` is the next one of shard `shard[i]`, whose next row is `row[s]` and whose next edge is `at[s]`; both are
    counted up. `where[s]` has the addresses of its arrays, which are of the types of `counts` (edges a row), `source`,
    `first_edge` and `edge`. An edge's id is `edge`, or counted from its row's `first_edge` where that is not empty.
    Written from `to` on.
    """
    for i in range(shard.shape[0]):
        s = shard[i]
        count = np.int64(peek(counts, where[s, 0], row[s]))
        begin = at[s]
        origin = peek(first_edge, where[s, 2], row[s]) if first_edge.shape[0] else 0
        sources, edges = where[s, 1], where[s, 3]
        for e in range(count):
            out_edge[to + e] = origin + np.int64(peek(edge, edges, begin + e))
            out_source[to + e] = np.int64(peek(source, sources, begin + e))
            out_owner[to + e] = first + i
        row[s] += 1
        at[s] = begin + count
        to += count


def _pick_signature(edge: Any) -> Any:
    return t.void(read(edge), read(int64), write(edge))


@compiled(_pick_signature(int32), _pick_signature(int64))
def pick_ids(ids: Any, position: Any, out: Any) -> None:
    """`ids[position]`; positions are by rows, so that memory is asked for some rows ahead."""
    count = position.shape[0]
    for e in range(count):
        if e + _EDGES_AHEAD < count:
            prefetch(ids, position[e + _EDGES_AHEAD])
        out[e] = ids[position[e]]


def _scatter_signature(word: Any) -> Any:
    return t.void(read(word, 2), read(int64), write(word, 2))


@compiled(*(_scatter_signature(word) for word in (uint8, uint32, uint64)))
def scatter_rows(table: Any, places: Any, out: Any) -> None:
    """`out[places[i]] = table[i]`."""
    for i in range(places.shape[0]):
        to = places[i]
        for j in range(table.shape[1]):
            out[to, j] = table[i, j]


@compiled(t.void(read(int64), write(int64), write(int32)))
def hot_insert(nodes: Any, keys: Any, slots: Any) -> None:
    """Fill an open-addressed table (a power of two long, `keys` of -1) with each node's place in `nodes`."""
    mask = np.uint64(keys.shape[0] - 1)
    for i in range(nodes.shape[0]):
        at = _mixed(nodes[i]) & mask
        while keys[at] >= 0:
            at = (at + np.uint64(1)) & mask
        keys[at] = nodes[i]
        slots[at] = np.int32(i)


@compiled(int64(read(int64), read(int64), read(int32), int32, write(int32), write(int64)))
def hot_lookup(nodes: Any, keys: Any, slots: Any, here: Any, shard: Any, row: Any) -> Any:
    """Give nodes of the table the shard `here` and their slot as row; return how many there are."""
    mask = np.uint64(keys.shape[0] - 1)
    found = 0
    count = nodes.shape[0]
    for i in range(count):
        if i + _AHEAD < count:
            prefetch(keys, np.int64(_mixed(nodes[i + _AHEAD]) & mask))
        at = _mixed(nodes[i]) & mask
        while keys[at] >= 0 and keys[at] != nodes[i]:
            at = (at + np.uint64(1)) & mask
        if keys[at] == nodes[i]:
            shard[i] = here
            row[i] = slots[at]
            found += 1
    return found


def _place_signature(edge: Any) -> Any:
    return int64(read(int64), read(edge), read(int64), read(int64), write(int64))


@compiled(_place_signature(int32), _place_signature(int64))
def place_edges(indptr: Any, ids: Any, rows: Any, wanted: Any, out: Any) -> Any:
    """The positions of edges by row and id (ids ascend within a row); return how many are not there."""
    missing = 0
    for i in range(rows.shape[0]):
        low, high = indptr[rows[i]], indptr[rows[i] + 1]
        last = high
        while low < high:
            middle = (low + high) >> 1
            if ids[middle] < wanted[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = low
        if low == last or ids[low] != wanted[i]:
            out[i] = 0
            missing += 1
    return missing


def _count_signature(index: Any) -> Any:
    return t.void(read(int64), read(index), read(int32), int64, write(int64, 2))


@compiled(_count_signature(int32), _count_signature(int64))
def count_shards(indptr: Any, indices: Any, shard: Any, first: Any, counts: Any) -> None:
    """Add to `counts` [rows, shards] how many neighbours of the rows from `first` on each shard has; -1 is none."""
    for i in range(counts.shape[0]):
        for e in range(indptr[first + i], indptr[first + i + 1]):
            owner = shard[indices[e]]
            if owner >= 0:
                counts[i, owner] += 1


@compiled(t.void(read(int64, 2), read(int64), float64, write(float64), write(int32)))
def assign(counts: Any, cost: Any, capacity: Any, load: Any, shard: Any) -> None:
    """Give each row the shard with the most of its neighbours, discounted by how full it is; see `edge_cut`."""
    shards = load.shape[0]
    for i in range(counts.shape[0]):
        best, score = -1, -1.0
        for s in range(shards):
            left = 1.0 - load[s] / capacity
            if load[s] + cost[i] > capacity:
                continue
            mine = counts[i, s] * left
            if mine > score or (mine == score and load[s] < load[best]):
                best, score = s, mine
        if best < 0:  # nowhere is there room: where there is the most
            best = 0
            for s in range(1, shards):
                if load[s] < load[best]:
                    best = s
        load[best] += cost[i]
        shard[i] = best
