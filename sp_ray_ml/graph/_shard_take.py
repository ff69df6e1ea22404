"""Sampling of rows that are in shards: asked for by shard, put together in the order in which they were wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph import _shard_kernels as kernel
from sp_ray_ml.graph._files import open_array
from sp_ray_ml.graph._hot import HotNodes, HotRows, hottest
from sp_ray_ml.graph._sample_inputs import SampleInputs
from sp_ray_ml.graph._sample_rows import EMPTY, Hop, Rows, Taken, Wanted, edge_ids, take_rows
from sp_ray_ml.graph._shard_part import ReadRows, Request, TakeRows, taken_counts
from sp_ray_ml.graph._split import Parts, Split, narrow
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
        time_attr: The edges' times.
        cache: Bytes of rows to keep here.
    """

    def __init__(self, parts: Parts, weight_attr: str | None, time_attr: str | None, cache: int) -> None:
        self.parts = parts
        self._weight = self._names(weight_attr, "weights", every=True)
        # A `Graph` has times of all its edges or is not sampled by time; in PyG's data, other types have no times.
        self._time = self._names(time_attr, "times", every=False)
        self.inputs = SampleInputs(parts.homogeneous, parts.num_nodes, dict.fromkeys(parts.kinds, _ABSENT))
        self.hot: dict[EdgeType, HotRows] = {}
        if cache:
            self._keep(cache)

    def _names(self, name: str | None, what: str, *, every: bool) -> dict[EdgeType, str | None]:
        having = [kind for kind in self.parts.kinds if name in self.parts.attributes(kind)]
        lacking = [kind for kind in self.parts.kinds if kind not in having]
        if name is not None and lacking and (every or not having):
            raise DataError(
                f"the edges have no {what} {name!r}", where=f"edges {'-'.join(lacking[0])}",
                hint="Sharded graphs are sampled by attributes of edges" if every is False else None,
            )  # fmt: skip
        return {kind: name if kind in having else None for kind in self.parts.kinds}

    def take(self, hops: Sequence[Hop], *, replace: bool, newest: bool) -> None:
        """Take in-edges of all that hops want, in one call a shard; `take_rows` for each, with edge ids as positions."""
        shards = len(self.parts.links)
        requests: list[list[Request]] = [[] for _ in range(shards)]
        wanted = [(one, hop) for hop in hops for one in hop.wanted]
        splits = []
        for one, hop in wanted:
            hot = self.hot.get(one.kind)
            split = self.parts.split(one.kind[2], one.nodes, None if hot is None else hot.nodes)
            splits.append(split)
            for s in range(shards):
                if len(split.rows[s]):
                    requests[s].append(
                        TakeRows(
                            self.parts.kinds[one.kind],
                            self._weight[one.kind],
                            self._time[one.kind],
                            one.fanout,
                            one.key,
                            replace,
                            newest,
                            narrow(split.rows[s], self.parts.num_nodes[one.kind[2]]),
                            narrow(one.trees[split.where[s]], 0) if len(one.trees) else EMPTY,
                            hop.until if self._time[one.kind] else EMPTY,
                        )
                    )
        answers = self.parts.begin(requests)
        kept = [
            self._take_kept(one, split, hop.until, replace, newest)
            for (one, hop), split in zip(wanted, splits, strict=True)
        ]
        iterators = [iter(some) for some in answers()]
        for (one, hop), split, here in zip(wanted, splits, kept, strict=True):
            found = [next(iterators[s]) if len(split.rows[s]) else None for s in range(shards)]
            _merge([*found, here], split, one, hop.into[one.kind])

    def _take_kept(
        self, one: Wanted, split: Split, until: NDArray[np.int64], replace: bool, newest: bool
    ) -> tuple[NDArray[Any], ...] | None:
        where = split.where[-1]
        if not len(where):
            return None
        rows, taken = self.hot[one.kind].rows, Taken.none()
        degree = take_rows(
            rows,
            one.nodes[where],
            rows=split.rows[-1],
            fanout=one.fanout,
            key=one.key,
            into=taken,
            trees=one.trees[where] if len(one.trees) else EMPTY,
            until=until if self._time[one.kind] else EMPTY,
            replace=replace,
            newest=newest,
        )
        counts = taken_counts(degree, one.fanout, replace=replace)
        return counts, taken.edge_index[0], edge_ids(rows, taken.position)

    def _keep(self, budget: int) -> None:
        parts, kinds = self.parts, list(self.parts.kinds)
        nodes = {name: open_array(parts.folder, f"hot-{i}-node") for name, i in parts.types.items()}
        visits = {name: open_array(parts.folder, f"hot-{i}-visits") for name, i in parts.types.items()}
        a_edge = {
            kind: (4 if parts.num_nodes[kind[0]] < 2**31 else 8)
            + 8
            + 4 * (self._weight[kind] is not None)
            + 8 * (self._time[kind] is not None)
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
        number, weight, time = self.parts.kinds[kind], self._weight[kind], self._time[kind]
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

    def whole(self, kind: EdgeType) -> Rows:
        """All in-edges of one type; in memory."""
        return self._read(kind, np.arange(self.parts.num_nodes[kind[2]]))


def _merge(answers: Sequence[Any], split: Split, one: Wanted, into: Taken) -> None:
    counts, sources, ids = (
        np.concatenate([part[i] for part in answers if part is not None]) if any(part is not None for part in answers) else EMPTY
        for i in range(3)
    )  # fmt: skip
    # Where each shard's rows and edges begin; the shards without rows begin where the next one does.
    rows = np.cumsum([0, *map(len, split.where)])[:-1]
    edges = np.cumsum([0, *(0 if part is None else len(part[1]) for part in answers)])[:-1]
    at = into.grow(len(sources))
    kernel.merge_rows(
        split.shard,
        rows,
        edges,
        counts.astype(np.int64),
        sources,
        ids,
        one.first,
        at,
        into.position,
        into.edge_index[0],
        into.edge_index[1],
    )
