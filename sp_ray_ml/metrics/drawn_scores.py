"""`DrawnScores`: areas under the ROC and precision-recall curves in each replicate of the bootstrap, in bounded memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sp_ray_ml.metrics._room import Kept, Room

__all__ = ["DrawnScores"]

_ROW = np.dtype([("score", np.float64), ("unit", np.uint64), ("truth", np.bool_)])
_IN_MEMORY = 1 << 20  # rows above which a sorted run goes to disk; fewer where many of these share the memory
_BLOCK = 1 << 20  # rows that are merged at a time
_SAMPLE = 1 << 10
_DRAWN = 1 << 12  # rows whose weights are drawn at a time: 6.5 MB in 200 replicates

_Rows = npt.NDArray[Any]


class DrawnScores:
    """Rows of two kinds with scores, drawn anew as `Means` does: how often a row is, is a function of its unit.

    The areas are those of `ScoreCounts`, with each row as often as it is drawn. Rows are kept, 17 bytes each, in
    sorted runs that go to a temporary file above a million rows; the areas are one pass over them, from the highest
    score on. Counts are whole numbers and sums follow the scores, so cuts into batches, their order and that of merges
    do not change a bit.

    Args:
        replicates: How many.
        seed: Of the draws.
        room: How much may be held in memory.
    """

    def __init__(self, replicates: int, seed: int = 0, room: Room | None = None) -> None:
        self.replicates, self.seed = replicates, seed
        self._room = room or Room()
        self._pending: list[_Rows] = []
        self._waiting = 0
        self._runs: list[Kept | _Rows] = []

    def update(
        self, scores: npt.NDArray[Any], truth: npt.NDArray[np.bool_], units: npt.NDArray[np.uint64]
    ) -> None:
        """Take some rows.

        Args:
            scores: Floats `[rows]`, none of them NaN.
            truth: bool `[rows]`.
            units: uint64 `[rows]`, what tells each from all others.
        """
        rows = np.empty(len(scores), _ROW)
        rows["score"], rows["unit"], rows["truth"] = scores, units, truth
        self._add(rows)

    def _add(self, rows: _Rows) -> None:
        self._pending.append(rows)
        self._waiting += len(rows)
        if self._waiting >= self._room.rows(_IN_MEMORY):
            self._runs.append(self._room.keep(_rising(self._pending)))
            self._pending, self._waiting = [], 0

    def merge(self, other: DrawnScores) -> None:
        """Take the rows of another one."""
        self._runs += [run if isinstance(run, Kept) else self._room.keep(run) for run in other._runs]
        for rows in other._pending:
            self._add(rows)

    def areas(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The area under the ROC curve, and the average precision, of each replicate, float64 `[replicates]` each.

        NaN where a replicate drew no positive row; of the ROC curve, or no negative one.
        """
        from sp_ray_ml.metrics._weights_kernel import add_areas, poisson_weights

        counts = np.zeros((self.replicates, 5), np.int64)
        precision = np.zeros(self.replicates)
        before = np.nan
        for rows in self._descending():
            for begin in range(0, len(rows), _DRAWN):
                part = rows[begin : begin + _DRAWN]
                scores, units = part["score"].copy(), part["unit"].copy()
                starts = scores != np.r_[before, scores[:-1]]
                before = scores[-1]
                weights = np.empty((self.replicates, len(part)))
                poisson_weights(units, np.uint64(self.seed), weights)
                add_areas(weights, part["truth"].copy(), starts, counts, precision)
        # A row that nothing is drawn of ends the last score.
        add_areas(
            np.zeros((self.replicates, 1)), np.zeros(1, np.bool_), np.ones(1, np.bool_), counts, precision
        )
        right, wrong, twice = (counts[:, place].astype(np.float64) for place in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            return twice / (2 * right * wrong), np.where(right > 0, precision / right, np.nan)

    def _descending(self) -> Iterator[_Rows]:
        """The rows from the highest score on, some at a time."""
        runs = [*map(_array, self._runs), _rising(self._pending)]
        cuts = np.sort(np.concatenate([run["score"][_SAMPLE::_SAMPLE] for run in runs]))
        cuts = cuts[_BLOCK // _SAMPLE :: _BLOCK // _SAMPLE]
        # A score that very many rows have is a range of its own.
        cuts = np.unique(np.r_[cuts, np.nextafter(cuts, np.inf)])
        ends = [len(run) for run in runs]
        for low in (*cuts[::-1].tolist(), -np.inf):
            begins = [bisect_left(run["score"], low) for run in runs]
            parts = [run[i:j] for run, i, j in zip(runs, begins, ends, strict=True) if i < j]
            ends = begins
            if parts and all(part["score"][0] == part["score"][-1] == parts[0]["score"][0] for part in parts):
                yield from parts
            elif parts:
                yield _rising(parts)[::-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runs": [np.array(_array(run)) for run in self._runs]}


def _array(run: Kept | _Rows) -> _Rows:
    return run.array() if isinstance(run, Kept) else run


def _rising(parts: list[_Rows]) -> _Rows:
    """All rows, the lowest score first."""
    rows = np.concatenate(parts) if parts else np.zeros(0, _ROW)
    return rows[np.argsort(rows["score"], kind="stable")]
