"""Sampling the in-edges of rows, and numbering what was found: the two parts of a sampler, for one process or many.

A sample is a function of its seeds: `batch_key` makes a key of them, `hop_key` one of each hop and edge type, and
`take_rows` draws each row's edges by that key and the row's node alone. Whoever holds a destination's row, here or in
another process, takes the same edges; put in the order in which they were asked for and numbered by `Numbering`, they
are the same sample to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph import _relabel_kernel as relabel
from sp_ray_ml.graph import _sampling_kernel as kernel

__all__ = [
    "EMPTY",
    "Drawn",
    "Hop",
    "Numbering",
    "Rows",
    "Seeds",
    "Taken",
    "Wanted",
    "batch_key",
    "draw_rows",
    "edge_ids",
    "hop_key",
    "take_rows",
]

EMPTY: NDArray[np.int64] = np.empty(0, np.int64)
_LARGEST = 2**31 - 2
_SHORT = 2**16
# Above this many nodes (a table of 256 MiB a thread), numbers are kept in a hash table of the batch's size.
_DIRECT = 2**26


@dataclass(frozen=True)
class Rows:
    """The edges of one type by destination, ready to be sampled.

    Attributes:
        indptr: int64 [rows + 1].
        indices: int32 or int64 [edges], source nodes.
        weight: float32 [edges], all above 0; empty without weights.
        time: int64 [edges], ascending within each row; empty without times.
        edge: int64 [edges], each edge's id; None where it is its position.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32] | NDArray[np.int64]
    weight: NDArray[np.float32]
    time: NDArray[np.int64]
    edge: NDArray[np.int64] | None


def batch_key(
    seed: int, epoch: int, seeds: Mapping[str, NDArray[np.int64]], until: NDArray[np.int64] | None = None
) -> int:
    """The key of a batch: a hash of what is sampled for, so that it does not matter who samples it, or when.

    Args:
        seed: The sampler's.
        epoch: The same seeds have another sample in another epoch.
        seeds: Node ids, by node type (link sampling: those that links lead from and to).
        until: The seeds' times, where they have any.
    """
    state = hashlib.blake2b(digest_size=8)
    state.update(f"{seed} {epoch}".encode())
    for name, nodes in seeds.items():
        state.update(f"|{name} {len(nodes)}|".encode())
        state.update(np.ascontiguousarray(nodes, np.int64).data)
    if until is not None:
        state.update(np.ascontiguousarray(until, np.int64).data)
    return int.from_bytes(state.digest(), "little")


def hop_key(batch: int, hop: int, edge_type: tuple[str, str, str]) -> int:
    """The key of one hop (from 0) and edge type of a batch."""
    text = f"{batch} {hop} {'|'.join(edge_type)}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass
class Taken:
    """Edges of one type that were taken so far.

    Attributes:
        position: int64 [edges], places in `Rows`.
        edge_index: int64 [2, edges]: sources, first as node ids, then numbered; and the numbers of the rows' nodes.
    """

    position: NDArray[np.int64]
    edge_index: NDArray[np.int64]

    @classmethod
    def none(cls) -> Taken:
        """No edges yet."""
        return cls(EMPTY, np.empty((2, 0), np.int64))

    def grow(self, count: int) -> int:
        """Make room for `count` edges more; return where they begin."""
        at = len(self.position)
        position, index = np.empty(at + count, np.int64), np.empty((2, at + count), np.int64)
        position[:at], index[:, :at] = self.position, self.edge_index
        self.position, self.edge_index = position, index
        return at


@dataclass(frozen=True)
class Wanted:
    """What one hop takes along one edge type; see `take_rows`."""

    kind: tuple[str, str, str]
    nodes: NDArray[np.int64]
    trees: NDArray[np.int64]
    first: int
    fanout: int
    key: int


@dataclass(frozen=True)
class Hop:
    """What one hop of a batch wants, where it goes, and the times of the batch's trees."""

    wanted: Sequence[Wanted]
    into: Mapping[tuple[str, str, str], Taken]
    until: NDArray[np.int64]


@dataclass(frozen=True)
class Seeds:
    """A batch's seeds by node type, their times where sampling is by time, and its key where it is not theirs."""

    nodes: Mapping[str, NDArray[np.int64]]
    until: NDArray[np.int64] | None = None
    key: int | None = None


def take_rows(
    edges: Rows,
    nodes: NDArray[np.int64],
    *,
    fanout: int,
    key: int,
    into: Taken,
    rows: NDArray[np.int64] | None = None,
    first: int = 0,
    trees: NDArray[np.int64] = EMPTY,
    until: NDArray[np.int64] = EMPTY,
    replace: bool = False,
    newest: bool = False,
) -> None:
    """Take in-edges of destinations, in the destinations' order; within one in the order of its edges.

    Args:
        edges: The edges of one type.
        nodes: int64 [n], the destinations' ids in the whole graph: what is drawn depends on them.
        fanout: Edges a destination; -1 for all.
        key: Of `hop_key`.
        into: Where they are added: positions, the sources' node ids, and `first` + the destination's place.
        rows: int64 [n], the destinations' rows in `edges`, where those are a part of the graph; `nodes` otherwise.
        first: The number of `nodes[0]` in the batch.
        trees: int64 [n], the destinations' trees, where seeds are sampled for themselves; what is drawn depends on it.
        until: int64 [trees], the time up to which edges count; empty without times.
        replace: Whether an edge may be taken more than once.
        newest: Whether the last edges in time are taken, rather than any of those up to `until`.
    """
    rows = nodes if rows is None else rows
    start, degree = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    total = kernel.count_rows(edges.indptr, rows, fanout, replace, edges.time, trees, until, start, degree)
    at = into.grow(total)
    kernel.pick_rows(
        edges.indices, edges.weight, start, degree, nodes, trees, fanout, replace, newest,
        np.array([key], np.uint64), np.array([len(rows)]), False, first,
        into.position, into.edge_index[0], into.edge_index[1], at,
    )  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """Edges drawn of rows for several batches, one row after the other.

    Attributes:
        counts: int64 [rows], how many of each.
        source: int32 or int64 [edges], node ids.
        start: int64 [rows], the position of each row's first edge.
        offset: uint16 or int32 [edges], places in the row.
    """

    counts: NDArray[np.int64]
    source: NDArray[np.int32] | NDArray[np.int64]
    start: NDArray[np.int64]
    offset: NDArray[np.uint16] | NDArray[np.int32]

    @property
    def position(self) -> NDArray[np.int64]:
        """The edges' positions in `Rows`."""
        return np.repeat(self.start, self.counts) + self.offset


def draw_rows(
    edges: Rows,
    nodes: NDArray[np.int64],
    rows: NDArray[np.int64],
    *,
    fanout: int,
    keys: NDArray[np.uint64],
    ends: NDArray[np.int64],
    trees: NDArray[np.int64],
    until: NDArray[np.int64],
    limits: NDArray[np.int64],
    replace: bool,
    newest: bool,
) -> Drawn:
    """As `take_rows`, for several batches in one go, and without the places of rows.

    Args:
        edges: The edges of one type.
        nodes: int64 [n], the destinations of all batches.
        rows: int64 [n], their rows in `edges`.
        fanout: As for `take_rows`.
        keys: uint64 [batches], of `hop_key`.
        ends: int64 [batches], where the destinations of each batch end.
        trees: int64 [n], each in its batch, or empty.
        until: int64, the times of all batches' trees, or empty without times.
        limits: int64 [batches], where the times of each batch begin.
        replace: As for `take_rows`.
        newest: As for `take_rows`.
    """
    start, degree = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    timed = trees + np.repeat(limits, np.diff(ends, prepend=0)) if len(until) else trees
    total = kernel.count_rows(edges.indptr, rows, fanout, replace, edges.time, timed, until, start, degree)
    source = np.empty(total, edges.indices.dtype)
    offset = np.empty(total, np.uint16 if degree.max(initial=0) <= _SHORT else np.int32)
    kernel.pick_rows(
        edges.indices, edges.weight, start, degree, nodes, trees, fanout, replace, newest, keys, ends, True, 0,
        offset, source, EMPTY, 0,
    )  # fmt: skip
    if fanout >= 0:
        degree = np.where(degree > 0, fanout, 0) if replace else np.minimum(degree, fanout)
    return Drawn(degree, source, start, offset)


def edge_ids(edges: Rows, position: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids of edges by their positions."""
    if edges.edge is None:
        return position
    ids = np.empty((len(position), 1), np.uint64)
    relabel.copy_rows(edges.edge.view(np.uint64).reshape(-1, 1), position, ids)
    return ids.view(np.int64).reshape(-1)


class Numbering:
    """Numbers for the nodes of one type in a batch: seeds by their place, others by when they were first met.

    Used again for batch after batch, by one thread at a time.
    """

    def __init__(self, num_nodes: int, *, disjoint: bool) -> None:
        self.disjoint = disjoint
        self.hashed = disjoint or num_nodes > _DIRECT
        self.nodes, self.trees, self.count = EMPTY, EMPTY, 0
        self._base = 1
        self._table = np.zeros(1024 if self.hashed else num_nodes, np.int32)
        self._keys = np.empty((1024 if self.hashed else 0, 2), np.int64)

    @property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - (len(self._table).bit_length() - 1))

    def begin(self, seeds: NDArray[np.int64], trees: NDArray[np.int64]) -> None:
        """Begin a batch."""
        self._base += self.count
        self.nodes, self.trees, self.count = EMPTY, EMPTY, 0
        self._reserve(len(seeds))
        self.count = len(seeds)
        self.nodes[: self.count] = seeds
        if self.disjoint:
            self.trees[: self.count] = trees
        self._insert()

    def add(
        self, source: NDArray[np.int64], at: int, owner: NDArray[np.int64], owner_tree: NDArray[np.int64]
    ) -> None:
        """Replace the node ids `source[at:]` by numbers; those of disjoint trees are in the tree of their owner."""
        self._reserve(len(source) - at)
        if self.hashed:
            self.count = relabel.number_hashed(
                source, at, owner, owner_tree, self._keys, self._table, self._shift, self._base, self.nodes, self.trees, self.count
            )  # fmt: skip
        else:
            self.count = relabel.number(source, at, self._table, self._base, self.nodes, self.count)

    def find(
        self, edges: Rows, start: NDArray[np.int64], degree: NDArray[np.int64], trees: NDArray[np.int64]
    ) -> Taken:
        """Every edge of some rows (as `count_rows` fills them) from a node of the batch, in the tree of the row."""

        def run(position: NDArray[np.int64], index: NDArray[np.int64]) -> int:
            row, column = index
            found: int = (
                relabel.find_hashed(
                    edges.indices, start, degree, trees, self._keys, self._table, self._shift, self._base, position, row, column
                )
                if self.hashed
                else relabel.find(edges.indices, start, degree, self._table, self._base, position, row, column)
            )  # fmt: skip
            return found

        found = Taken.none()
        found.grow(run(found.position, found.edge_index))
        run(found.position, found.edge_index)
        return found

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The batch's nodes and trees."""
        nodes, trees = self.nodes[: self.count], self.trees[: self.count]
        if self.count < len(self.nodes) // 2:  # do not hold twice the memory
            nodes, trees = nodes.copy(), trees.copy()
        return nodes, trees

    def _insert(self) -> None:
        nodes, trees = self.nodes[: self.count], self.trees[: self.count if self.disjoint else 0]
        if self.hashed:
            relabel.insert_hashed(nodes, trees, self._keys, self._table, self._shift, self._base)
        else:
            relabel.insert(nodes, self._table, self._base)

    def _reserve(self, more: int) -> None:
        """Room for `more` nodes, and one that the kernel writes beside."""
        size = self.count + more + 1
        nodes = np.empty(size, np.int64)
        nodes[: self.count] = self.nodes[: self.count]
        self.nodes = nodes
        if self.disjoint:
            trees = np.empty(size, np.int64)
            trees[: self.count] = self.trees[: self.count]
            self.trees = trees
        if self.hashed and len(self._table) < 2 * size:
            slots = 1 << (2 * size - 1).bit_length()
            self._table, self._keys = np.zeros(slots, np.int32), np.empty((slots, 2), np.int64)
            self._base = 1
            self._insert()
        elif self._base + size > _LARGEST:
            self._table.fill(0)
            self._base = 1
            self._insert()
