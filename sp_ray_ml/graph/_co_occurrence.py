"""Edges between nodes that one node had within a window of time, counted in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sp_ray_ml.errors import DataError
from sp_ray_ml.graph._pair_kernels import pairs_within
from sp_ray_ml.graph._row_kernels import count_into, sort_rows
from sp_ray_ml.graph._rows import SortedRows
from sp_ray_ml.graph.settings import CoOccurrence
from sp_ray_ml.storage import storage_errors

__all__ = ["PairCounter"]

_Counted = tuple[NDArray[np.uint64], NDArray[np.int64]]
"""Pairs as `first << 32 | second`, ascending and distinct, and how often each was there."""

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MOST_RUNS = 8


class PairCounter:
    """Counts pairs. The work is linear in the events, at most `neighbors` pairs each; what is held is `room` pairs.

    Runs of counted pairs go to files when there is a folder, and are merged when they are many.

    Args:
        num_nodes: How many nodes the pairs are of.
        settings: Window, caps, and how many edges a node keeps.
        folder: For runs; None keeps them in memory.
        room: Pairs that are sorted at a time.
    """

    def __init__(
        self, num_nodes: int, settings: CoOccurrence, folder: Path | None = None, room: int = 1 << 23
    ) -> None:
        if num_nodes > int(_LOW):
            raise DataError(
                f"co-occurrence of {num_nodes:,} nodes: 2^32 - 1 are the most", where="co_occurrence"
            )
        self.num_nodes, self.settings, self.folder = num_nodes, settings, folder
        self._keys = np.empty(max(room, 2 * settings.neighbors), np.uint64)
        self._runs: list[_Run] = []
        self._number = 0

    def add(self, rows: SortedRows) -> None:
        """Count the pairs of whole rows; they need times."""
        assert rows.time is not None
        order = np.arange(len(rows.other))
        none = np.empty(0, np.float32)
        sort_rows(rows.indptr, order, rows.time, rows.other.astype(np.int64), none)
        other, time = rows.other[order], rows.time[order]
        window = int(self.settings.window.total_seconds() * 1e9)
        last = self.settings.last_events or len(other) + 1
        place = np.zeros(2, np.int64)
        while place[0] < len(rows.indptr) - 1:
            used = pairs_within(
                rows.indptr, other, time, window, self.settings.neighbors, last, place, self._keys
            )
            if used:
                self._keys[:used].sort()
                self._keep(iter([_counted(self._keys[:used], np.ones(used, np.int64))]))

    def finish(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """The edges: lengths of some rows, their other nodes, ascending, and weights; the rows in their order.

        Of each row the `top` largest are kept; among equal ones those of the lower other node.
        """
        for begin, end, (keys, counts) in self._merged():
            row = (keys >> _HALF).astype(np.int64)
            order = np.lexsort((keys, -counts, row))
            lengths = np.bincount(row - begin, minlength=end - begin)
            rank = np.arange(len(keys)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            kept = np.sort(order[rank < self.settings.top])
            yield (
                np.bincount(row[kept] - begin, minlength=end - begin),
                (keys[kept] & _LOW).astype(np.int64),
                counts[kept].astype(np.float32),
            )
        for run in self._runs:
            run.remove()

    def _keep(self, parts: Iterator[_Counted]) -> None:
        if len(self._runs) == _MOST_RUNS:
            old = self._runs
            merged = self._run(counted for _, _, counted in self._merged())
            self._runs = [merged]
            for run in old:
                run.remove()
        self._runs.append(self._run(parts))

    def _run(self, parts: Iterator[_Counted]) -> _Run:
        self._number += 1
        return _Run(parts, self.num_nodes, self.folder and self.folder / f"pairs-{self._number}")

    def _merged(self) -> Iterator[tuple[int, int, _Counted]]:
        """Runs as one, by ranges of rows that hold about as many pairs as are sorted at a time."""
        rows = np.zeros(self.num_nodes, np.int64)
        for run in self._runs:
            rows += np.diff(run.indptr)
        part = (np.cumsum(rows) - rows) // len(self._keys)
        begins = np.flatnonzero(np.diff(part, prepend=-1))
        for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), self.num_nodes], strict=True):
            found = [run.read(begin, end) for run in self._runs]
            keys = np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in found)])
            counts = np.concatenate([np.empty(0, np.int64), *(counts for _, counts in found)])
            order = np.argsort(keys, kind="stable")
            yield begin, end, _counted(keys[order], counts[order])


class _Run:
    """Counted pairs in ascending order, in memory or in a file of their keys and one of their counts."""

    def __init__(self, parts: Iterator[_Counted], num_nodes: int, path: Path | None) -> None:
        rows = np.zeros(num_nodes, np.int64)
        self._arrays: _Counted | None = None
        self._paths = [] if path is None else [path.with_suffix(".keys"), path.with_suffix(".counts")]
        if path is None:
            every = list(parts)
            self._arrays = (
                np.concatenate([np.empty(0, np.uint64), *(keys for keys, _ in every)]),
                np.concatenate([np.empty(0, np.int64), *(counts for _, counts in every)]),
            )
            count_into((self._arrays[0] >> _HALF).astype(np.int64), rows)
        else:
            with (
                storage_errors(path),
                self._paths[0].open("wb") as first,
                self._paths[1].open("wb") as second,
            ):
                for keys, counts in parts:
                    keys.tofile(first)
                    counts.tofile(second)
                    count_into((keys >> _HALF).astype(np.int64), rows)
        self.indptr = np.concatenate([[0], np.cumsum(rows)])

    def read(self, begin: int, end: int) -> _Counted:
        """The pairs of rows `begin` to `end`."""
        first, count = int(self.indptr[begin]), int(self.indptr[end] - self.indptr[begin])
        if self._arrays is not None:
            return self._arrays[0][first : first + count], self._arrays[1][first : first + count]
        keys, counts = self._paths
        with storage_errors(keys, "read"):
            return (
                np.fromfile(keys, np.uint64, count, offset=8 * first),
                np.fromfile(counts, np.int64, count, offset=8 * first),
            )

    def remove(self) -> None:
        """Delete what is on disk."""
        for path in self._paths:
            path.unlink(missing_ok=True)


def _counted(keys: NDArray[np.uint64], counts: NDArray[np.int64]) -> _Counted:
    """Distinct ones of ascending keys, and the sum of the counts of each."""
    new = np.empty(len(keys), dtype=bool)
    new[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    first = np.flatnonzero(new)
    return keys[first], np.add.reduceat(counts, first)
