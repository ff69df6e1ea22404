"""Sampling of rows that are in shards: asked for by shard, put together in the order in which they were wanted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._compiled import addresses
from sp_ray_ml.graph._files import open_array
from sp_ray_ml.graph._hot import HotNodes, HotRows, hottest
from sp_ray_ml.graph._negatives import linked
from sp_ray_ml.graph._partition import open_node_times
from sp_ray_ml.graph._sample_inputs import SampleInputs, check_times, no_times, where_edges
from sp_ray_ml.graph._sample_rows import EMPTY, Hop, Rows, Wanted, draw_rows, edge_ids
from sp_ray_ml.graph._shard_answers import Answered, alike
from sp_ray_ml.graph._shard_part import FindEdges, ReadRows, Request, TakeRows
from sp_ray_ml.graph._split import Parts, narrow
from sp_ray_ml.graph.graph import EdgeType

__all__ = ["RemoteRows"]

_NO_WEIGHT = np.empty(0, np.float32)
_ABSENT = Rows(np.zeros(1, np.int64), np.empty(0, np.int32), _NO_WEIGHT, EMPTY, None)
"""What stands for rows that are elsewhere; positions in them are edge ids."""


class RemoteRows:
    """The rows of all types, with weights and times of given names.

    Args:
        parts: The shards.
        weight_attr: The edges' weights.
        time_attr: The times of edges, or of nodes: an edge has that of the node it comes from, then.
        cache: Bytes of rows to keep here.
    """

    def __init__(self, parts: Parts, weight_attr: str | None, time_attr: str | None, cache: int) -> None:
        self.parts = parts
        self.weight = self._of_all("weights", weight_attr)
        node_time = open_node_times(parts.folder, parts.manifest, time_attr)
        self.time = self._times(time_attr, node_time)
        self.inputs = SampleInputs(
            parts.homogeneous, parts.num_nodes, dict.fromkeys(parts.kinds, _ABSENT), node_time
        )
        self.hot: dict[EdgeType, HotRows] = {}
        if cache:
            self._keep(cache)

    def _of_all(self, what: str, name: str | None) -> dict[EdgeType, str | None]:
        """What edges of all types have to have."""
        for kind in self.parts.kinds if name is not None else ():
            if name not in self.parts.attributes(kind):
                raise DataError(f"the edges have no {what} {name!r}", where=where_edges(kind))
        return dict.fromkeys(self.parts.kinds, name)

    def _times(self, name: str | None, node_time: Collection[str]) -> dict[EdgeType, str | None]:
        parts = self.parts
        if parts.manifest["graph"]:
            # A `Graph` has times of all its edges or is not sampled by time; in PyG's data, other types have no times.
            self._of_all("times", name)
        timed = [kind for kind in parts.kinds if name in parts.attributes(kind)]
        for kind in timed:
            dtype = np.dtype(parts.attributes(kind)[str(name)]["dtype"])
            if dtype.kind not in "biu":
                raise no_times(dtype, where_edges(kind))
        if name is not None:
            check_times(node_time, timed, name)
        return {kind: name if kind in timed or kind[0] in node_time else None for kind in parts.kinds}

    def take(self, hops: Sequence[Hop], *, replace: bool, newest: bool) -> list[Callable[[], None]]:
        """Take in-edges of all that hops want, in one call a shard; with edge ids as positions.

        Returns:
            What puts the edges of each hop in its place. One batch after the other, they are still in the processor's
            cache when they are numbered.
        """
        together: dict[tuple[EdgeType, int], list[tuple[int, Wanted]]] = {}
        for number, hop in enumerate(hops):
            for one in hop.wanted:
                together.setdefault((one.kind, one.fanout), []).append((number, one))
        asked = [_Asked(self, kind, fanout, some, hops) for (kind, fanout), some in together.items()]
        requests: list[list[Request]] = [[] for _ in self.parts.links]
        for some in asked:
            some.request(requests, replace=replace, newest=newest)
        answers = self.parts.begin(requests)
        for some in asked:
            some.take_kept(replace=replace, newest=newest)
        iterators = [iter(some) for some in answers()]
        for some in asked:
            some.found(iterators)

        left = dict(enumerate(hops))

        def put(number: int) -> None:
            hop = left.pop(number)  # what is put together is not held here
            for some in asked:
                some.put(number, hop)

        return [partial(put, number) for number in range(len(hops))]

    def _keep(self, budget: int) -> None:
        parts, kinds = self.parts, list(self.parts.kinds)
        nodes = {name: open_array(parts.folder, f"hot-{i}-node") for name, i in parts.types.items()}
        visits = {name: open_array(parts.folder, f"hot-{i}-visits") for name, i in parts.types.items()}
        a_edge = {
            kind: (4 if parts.num_nodes[kind[0]] < 2**31 else 8)
            + 8
            + 4 * (self.weight[kind] is not None)
            + 8 * (self.time[kind] is not None)
            for kind in kinds
        }
        degree = [np.asarray(open_array(parts.folder, f"hot-edges-{parts.kinds[kind]}")) for kind in kinds]
        chosen = hottest(
            [np.asarray(visits[kind[2]]) for kind in kinds],
            [count * a_edge[kind] for count, kind in zip(degree, kinds, strict=True)],
            budget,
        )
        for kind, places in zip(kinds, chosen, strict=True):
            if len(places):
                ids = np.ascontiguousarray(nodes[kind[2]][places], np.int64)
                self.hot[kind] = HotRows(HotNodes(ids), self._read(kind, ids))

    def _read(self, kind: EdgeType, nodes: NDArray[np.int64]) -> Rows:
        """Whole rows, from their shards."""
        if not len(nodes):
            return _ABSENT
        split = self.parts.split(kind[2], nodes)
        number, weight, time = self.parts.kinds[kind], self.weight[kind], self.time[kind]
        answers = self.parts.all(
            [[ReadRows(number, weight, time, rows)] if len(rows) else [] for rows in split.rows[:-1]]
        )
        order = np.concatenate(split.where[:-1])
        parts = [some[0] for some in answers if some]
        counts = np.concatenate([part[0].astype(np.int64) for part in parts])
        begin = np.cumsum(counts) - counts
        back = np.argsort(order, kind="stable")
        counts = counts[back]
        indptr = np.concatenate([[0], np.cumsum(counts)])
        position = np.arange(indptr[-1]) + np.repeat(begin[back] - indptr[:-1], counts)
        columns = [np.concatenate([part[i] for part in parts]) for i in (1, 2, 3, 4)]
        indices, weights, times, ids = columns
        return Rows(
            indptr,
            indices[position],
            weights[position] if weight else _NO_WEIGHT,
            times[position] if time else EMPTY,
            ids[position].astype(np.int64),
        )

    def linked(
        self, kind: EdgeType, source: NDArray[np.int64], destination: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which pairs of nodes are edges of one type, bool [n], asked in one call a shard."""
        parts, hot = self.parts, self.hot.get(kind)
        split = parts.split(kind[2], destination, None if hot is None else hot.nodes)
        number, weight, time = parts.kinds[kind], self.weight[kind], self.time[kind]
        requests: list[list[Request]] = [[] for _ in parts.links]
        for some, where, rows in zip(requests, split.where, split.rows, strict=False):
            if len(rows):
                sources = narrow(source[where], parts.num_nodes[kind[0]])
                some.append(FindEdges(number, weight, time, narrow(rows, parts.num_nodes[kind[2]]), sources))
        answers = parts.begin(requests)
        found = np.zeros(len(source), np.bool_)
        if hot is not None:
            found[split.where[-1]] = linked(hot.rows, source[split.where[-1]], split.rows[-1])
        for where, answer in zip(split.where, answers(), strict=False):
            if answer:
                found[where] = answer[0][0]
        return found

    def whole(self, kind: EdgeType) -> Rows:
        """All in-edges of one type; in memory."""
        return self._read(kind, np.arange(self.parts.num_nodes[kind[2]]))


class _Asked:
    """What several batches want of one edge type, in one go: the nodes of all by shard, in each shard by batch."""

    def __init__(
        self, rows: RemoteRows, kind: EdgeType, fanout: int, some: Sequence[tuple[int, Wanted]], hops: Sequence[Hop]
    ) -> None:  # fmt: skip
        self._rows, self._kind, self._fanout = rows, kind, fanout
        self._place = {number: b for b, (number, _) in enumerate(some)}
        self._wanted = [one for _, one in some]
        self._nodes = np.concatenate([one.nodes for one in self._wanted])
        self._trees = np.concatenate([one.trees for one in self._wanted])
        times = [hops[number].until for number, _ in some] if rows.time[kind] else [EMPTY]
        self._until = np.concatenate(times)
        self._limits = _begins(times)[:-1]
        self._keys = np.array([one.key for one in self._wanted], np.uint64)
        self._batches = _begins([one.nodes for one in self._wanted])
        self._hot = rows.hot.get(kind)
        self._split = rows.parts.split(kind[2], self._nodes, None if self._hot is None else self._hot.nodes)
        # Where each batch's rows begin in each shard, and where the last end.
        self._begin = np.stack([np.searchsorted(where, self._batches) for where in self._split.where])
        self._answers: list[Answered] = []

    def request(self, requests: list[list[Request]], *, replace: bool, newest: bool) -> None:
        """Add what is asked of each shard."""
        parts, split = self._rows.parts, self._split
        for s, some in enumerate(requests):
            if len(split.rows[s]):
                some.append(
                    TakeRows(
                        parts.kinds[self._kind],
                        self._rows.weight[self._kind],
                        self._rows.time[self._kind],
                        self._fanout,
                        replace,
                        newest,
                        self._keys,
                        self._begin[s][1:],
                        narrow(split.rows[s], parts.num_nodes[self._kind[2]]),
                        narrow(self._trees[split.where[s]], 0) if len(self._trees) else EMPTY,
                        self._until,
                        self._limits,
                    )
                )

    def take_kept(self, *, replace: bool, newest: bool) -> None:
        """Take of the rows that are kept here."""
        where = self._split.where[-1]
        self._kept: Answered | None = None
        if self._hot is not None and len(where):
            drawn = draw_rows(
                self._hot.rows,
                self._nodes[where],
                self._split.rows[-1],
                fanout=self._fanout,
                keys=self._keys,
                ends=self._begin[-1][1:],
                trees=self._trees[where] if len(self._trees) else EMPTY,
                until=self._until,
                limits=self._limits,
                replace=replace,
                newest=newest,
            )
            self._kept = Answered.of(
                drawn.counts, drawn.source, EMPTY, edge_ids(self._hot.rows, drawn.position)
            )

    def found(self, iterators: Sequence[Iterator[Any]]) -> None:
        """Take the shards' next answers."""
        answers = [
            Answered.of(*next(iterators[s])) if len(rows) else None
            for s, rows in enumerate(self._split.rows[:-1])
        ]
        self._answers = alike([*answers, self._kept])
        # Of one that has rows: whether there are first ids is told by their number.
        self._types = max(self._answers, key=lambda one: len(one.counts))
        self._where = np.stack(
            [addresses((one.counts, one.source, one.first, one.edge)) for one in self._answers]
        )
        # Where each batch's edges begin in each shard, and where the last end.
        self._edges = np.stack(
            [one.begin[rows] for one, rows in zip(self._answers, self._begin, strict=True)]
        )

    def put(self, number: int, hop: Hop) -> None:
        """Put one batch's edges in the order of its rows."""
        b = self._place.get(number)
        if b is None:
            return
        at = self._edges[:, b].copy()
        into, types = hop.into[self._kind], self._types
        kernel.merge_rows(
            self._split.shard[self._batches[b] : self._batches[b + 1]],
            self._begin[:, b].copy(),
            at,
            self._where,
            types.counts,
            types.source,
            types.first,
            types.edge,
            self._wanted[b].first,
            into.grow(int((self._edges[:, b + 1] - at).sum())),
            into.position,
            into.edge_index[0],
            into.edge_index[1],
        )


def _begins(arrays: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Where each one begins when they follow one another, and where the last ends."""
    return np.cumsum([0, *map(len, arrays)])
