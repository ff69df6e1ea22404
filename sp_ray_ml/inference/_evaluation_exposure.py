"""How lists spread over the catalogue in each replicate of the bootstrap, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.graph._external import Columns, Spool
from sp_ray_ml.inference._evaluation_groups import Found
from sp_ray_ml.metrics._exposure_kernel import count_shown
from sp_ray_ml.metrics._weights_kernel import poisson_weights
from sp_ray_ml.metrics.exposure import Spread, spread, spread_interval
from sp_ray_ml.metrics.means import LEAST_UNITS

__all__ = ["Exposure", "add_spreads", "spreads_of_counts", "spreads_of_lists"]

_MOST_COUNTS = 1 << 26
"""Counts of 4 bytes that all threads hold at a time, or one thread's fewest, 4 replicates of a group."""
_IN_MEMORY = 1 << 22  # cells of lists above which they lie in a file
_USERS = 1 << 11  # whose weights are drawn at a time
_LANES = 4  # replicates that one draw of 64 bits makes

_Spreads = dict[str, tuple[float, NDArray[np.float64]]]
"""By name, `coverage@10`: the value, and those of the replicates."""


class Exposure:
    """Users' lists, kept until all are there, and counted anew for each replicate.

    A user is drawn as often as in `Means`, which draws by the same number. How often each item is shown in each
    replicate would be items × replicates numbers for each group and length, too many to hold. So the lists are gone
    over several times, each time for as many replicates, and groups, as fit in memory; counts are whole numbers, so
    that neither this nor the order of the users changes a bit.

    Args:
        ks: Lengths, ascending.
        groups: How many; the first is that of all users.
        replicates: Of the bootstrap; without any, nothing is kept.
        seed: Of the bootstrap.
        folder: For the file of many lists, which goes when a block of this ends; without, all stay in memory.
    """

    def __init__(
        self, ks: Sequence[int], groups: int, replicates: int, seed: int = 0, folder: Path | None = None
    ) -> None:
        self._ks, self._groups = np.array(ks, np.int64), groups
        self.replicates, self._seed, self._folder = replicates, seed, folder
        self._chunks: list[Columns] = []
        self._spool: Spool | None = None
        self._cells = 0

    def __enter__(self) -> Exposure:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spool is not None:
            self._spool.remove()

    def keep(
        self,
        lists: NDArray[np.int32],
        units: NDArray[np.uint64],
        groups: Sequence[NDArray[np.integer]] | NDArray[np.integer] = (),
    ) -> None:
        """Take some users.

        Args:
            lists: int32 `[users, depth]`, items by code, -1 where a list ends.
            units: uint64 `[users]`, what tells each from all others.
            groups: `[users]` each: a group that a user is in beside the first, -1 for none; as many in every call.
        """
        if not self.replicates or not len(lists):
            return
        depth = int(self._ks[-1])
        columns = (units, *(each.astype(np.int16) for each in groups), *lists[:, :depth].T)
        self._cells += lists.size
        if self._folder is not None and self._spool is None and self._cells > _IN_MEMORY:
            self._spool = Spool(self._folder / "lists", [column.dtype for column in columns])
            for chunk in self._chunks:
                self._spool.append(chunk)
            self._chunks = []
        if self._spool is None:
            self._chunks.append(tuple(np.array(column) for column in columns))
        else:
            self._spool.append(columns)

    def drawn(
        self, items: int, num_items: int, pool: Executor | None = None, threads: int = 1
    ) -> NDArray[np.float64]:
        """`Spread` of each replicate, float64 `[groups, k, 3, replicates]`; NaN where a replicate drew nobody.

        Args:
            items: How many codes there are.
            num_items: Size of the catalogue.
            pool: Threads to work in.
            threads: How many.
        """
        found = np.full((self._groups, len(self._ks), 3, self.replicates), np.nan)
        if not self.replicates:
            return found
        room = max(1, _MOST_COUNTS // threads // max(1, items * len(self._ks)))
        # Each thread has some of the replicates; where all of its fit, it counts several groups at once.
        share = -(-self.replicates // threads)
        lanes = min(-(-share // _LANES), max(1, room // _LANES)) * _LANES
        together = max(1, room // lanes)
        passes: list[Callable[[], None]] = []
        for group in range(0, self._groups, together):
            for first in range(0, self.replicates, lanes):
                part = found[group : group + together, :, :, first : first + lanes]
                passes.append(partial(self._count, part, group, first, items, num_items))
        if pool is None:
            for each in passes:
                each()
        else:
            list(pool.map(lambda each: each(), passes))
        return found

    def _count(self, out: NDArray[np.float64], group: int, first: int, items: int, num_items: int) -> None:
        groups, _, _, replicates = out.shape
        shown = np.zeros((groups, len(self._ks), items, replicates), np.uint32)
        people = np.zeros((groups, replicates), np.int64)
        chunks = self._chunks if self._spool is None else map(self._spool.chunk, range(len(self._spool.rows)))
        for units, *columns in chunks:
            depth = int(self._ks[-1])
            lists = np.ascontiguousarray(np.stack(columns[-depth:], axis=1))
            of = np.stack([np.zeros(len(units), np.int16), *columns[:-depth]])
            for begin in range(0, len(units), _USERS):
                end = min(begin + _USERS, len(units))
                drawn = np.empty((replicates, end - begin))
                poisson_weights(units[begin:end], np.uint64(self._seed + first), drawn)
                weights = np.ascontiguousarray(drawn.T.astype(np.uint8))
                mine = np.ascontiguousarray(of[:, begin:end])
                count_shown(lists[begin:end], mine, weights, self._ks, group, shown)
                for place in range(groups):
                    people[place] += weights[(mine == group + place).any(axis=0)].sum(axis=0, dtype=np.int64)
        for place, per_k in enumerate(shown):
            for at_k in range(len(self._ks)):
                if at_k:
                    per_k[at_k] += per_k[at_k - 1]
                for replicate, counts in enumerate(np.ascontiguousarray(per_k[at_k].T)):
                    if people[place, replicate]:
                        out[place, at_k, :, replicate] = spread(counts, num_items)


def spreads_of_counts(
    shown: NDArray[np.integer], drawn: NDArray[np.float64], ks: Sequence[int], num_items: int
) -> _Spreads:
    """Coverage, Gini index and entropy at each length.

    Args:
        shown: `[k, items]`, how often each item is in the first k.
        drawn: What `Exposure.drawn` has of the group, `[k, 3, replicates]`.
        ks: Lengths, ascending.
        num_items: Size of the catalogue.
    """
    values = [spread(counts, num_items) for counts in shown]
    return {
        f"{name}@{k}": (values[at_k][place], drawn[at_k, place])
        for place, name in enumerate(Spread._fields)
        for at_k, k in enumerate(ks)
    }


def spreads_of_lists(
    lists: NDArray[np.int32],
    units: NDArray[np.uint64],
    ks: Sequence[int],
    num_items: int,
    replicates: int,
    seed: int = 0,
) -> _Spreads:
    """The same, of lists in memory `[users, depth]` of codes, -1 where one ends."""
    exposure = Exposure(ks, 1, replicates, seed)
    exposure.keep(lists, units)
    items = int(lists.max(initial=-1)) + 1
    shown = np.stack([np.bincount(lists[:, :k][lists[:, :k] >= 0], minlength=items) for k in ks])
    return spreads_of_counts(shown, exposure.drawn(items, num_items)[0], ks, num_items)


def add_spreads(
    found: Found, spreads: Mapping[str, tuple[float, NDArray[np.float64]]], users: int, label: str,
    *, only_intervals: bool = False,
) -> None:  # fmt: skip
    """Add values of so many users, and their intervals where there are enough of these."""
    for name, (value, drawn) in spreads.items():
        ends = spread_interval(drawn, value) if users >= LEAST_UNITS else None
        found.add({} if only_intervals else {name: value}, {} if ends is None else {name: ends}, label)
