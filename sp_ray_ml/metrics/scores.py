"""`ScoreCounts`: ROC and precision-recall of scores of any number of rows, exact and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sp_ray_ml.metrics._fixed import weighted_mean
from sp_ray_ml.metrics._room import Kept, Room

__all__ = ["ScoreCounts", "auc_difference"]

# The most of each; less where many of these share the memory.
_PENDING = 1 << 22  # rows that are kept as they came until they are sorted
_IN_MEMORY = 1 << 20  # distinct scores above which a sorted run goes to disk
_BLOCK = 1 << 21  # distinct scores that are merged at a time
_SAMPLE = 1 << 12

_Run = tuple[npt.NDArray[Any], npt.NDArray[np.int64]]


class _Multiset:
    """How often each number was there: sorted runs of distinct numbers, the long ones in a temporary file."""

    def __init__(self, room: Room) -> None:
        self.rows = 0
        self._room = room
        self._pending: list[npt.NDArray[Any]] = []
        self._waiting = 0
        self._kept: list[tuple[Kept, Kept]] = []
        self._came: list[_Run] = []  # from another process, on the way into `merge`
        self._last: _Run | None = None  # the only one in memory otherwise

    def add(self, values: npt.NDArray[Any]) -> None:
        self.rows += len(values)
        self._pending.append(
            values.astype(np.float32 if values.dtype == np.float32 else np.float64, copy=False)
        )
        self._waiting += len(values)
        if self._waiting >= self._room.rows(_PENDING):
            self.settle()

    def settle(self) -> None:
        if not self._waiting:
            return
        values = np.sort(np.concatenate(self._pending))
        self._pending, self._waiting = [], 0
        first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        counts = np.diff(np.r_[first, len(values)])
        self._keep((values[first], counts))

    def _keep(self, run: _Run) -> None:
        if self._last is not None:
            run = _merged([self._last, run])
        if len(run[0]) > self._room.rows(_IN_MEMORY):
            self._kept.append((self._room.keep(run[0]), self._room.keep(run[1])))
            self._last = None
        else:
            self._last = run

    @property
    def runs(self) -> list[_Run]:
        """All of them; those in the file memory-mapped."""
        kept = [(values.array(), counts.array()) for values, counts in self._kept]
        return [*kept, *self._in_memory()]

    def _in_memory(self) -> list[_Run]:
        return self._came if self._last is None else [*self._came, self._last]

    def merge(self, other: _Multiset) -> None:
        other.settle()
        self.rows += other.rows
        self._kept += other._kept
        for run in other._in_memory():
            self._keep(run)

    def between(self, low: float, high: float) -> _Run:
        """The numbers in `[low, high)`, infinity with the last."""
        parts = []
        for values, counts in self.runs:
            begin, end = np.searchsorted(values, np.array([low, high], values.dtype)).tolist()
            end = len(values) if high == np.inf else end
            parts.append((values[begin:end], counts[begin:end]))
        return _merged(parts)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {
            "rows": self.rows,
            "room": self._room,
            "runs": [(np.array(v), np.array(n)) for v, n in self.runs],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["room"])  # type: ignore[misc]
        self.rows, self._came = state["rows"], state["runs"]


def _merged(runs: list[_Run]) -> _Run:
    """One run of several, in pairs, so that no score is moved more often than needed."""
    from sp_ray_ml.metrics._scores_kernel import merge_runs

    kind = np.result_type(*(run[0] for run in runs)) if runs else np.dtype(np.float32)
    left = [(_plain(values, kind), _plain(counts, np.int64)) for values, counts in runs if len(values)]
    while len(left) > 1:
        pairs = []
        for first, second in zip(left[::2], left[1::2], strict=False):
            rows = len(first[0]) + len(second[0])
            values, counts = np.empty(rows, kind), np.empty(rows, np.int64)
            rows = merge_runs(*first, *second, values, counts)
            pairs.append((values[:rows], counts[:rows]))
        left = pairs + left[2 * len(pairs) :]
    return left[0] if left else (np.zeros(0, kind), np.zeros(0, np.int64))


def _plain(array: npt.NDArray[Any], kind: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array as machine code takes it: no view of a file, and writable though nobody writes."""
    return np.require(array, kind, ["C", "W", "E"])


class _Sums(NamedTuple):
    """Of the positives: pairs won, doubled; precisions; squared shares of negatives below. Of the negatives: above."""

    twice: int
    precision: int
    below: int
    above: int


class ScoreCounts:
    """How often each distinct score was that of a positive and of a negative row.

    All counts and sums are whole numbers, so cuts into batches, their order and that of merges do not change a bit.
    Above some millions of distinct scores sorted runs lie in a temporary file: memory does not grow with the rows.

    Args:
        room: How much may be held in memory.
    """

    def __init__(self, room: Room | None = None) -> None:
        room = room or Room()
        self._of = (_Multiset(room), _Multiset(room))  # negative, positive
        self._sums: _Sums | None = None

    @property
    def positive(self) -> int:
        """Rows whose truth is positive."""
        return self._of[1].rows

    @property
    def negative(self) -> int:
        """The other rows."""
        return self._of[0].rows

    def update(self, scores: npt.NDArray[Any], truth: npt.NDArray[np.bool_]) -> None:
        """Take some rows.

        Args:
            scores: Floats `[rows]`, none of them NaN; float32 takes half the room.
            truth: bool `[rows]`.
        """
        self._sums = None
        self._of[1].add(scores[truth])
        self._of[0].add(scores[~truth])

    def merge(self, other: ScoreCounts) -> None:
        """Take the rows of another one."""
        self._sums = None
        for mine, theirs in zip(self._of, other._of, strict=True):
            mine.merge(theirs)

    def auc(self) -> float | None:
        """Area under the ROC curve, ties counted half (Mann-Whitney U); None without rows of both kinds."""
        if not self.positive or not self.negative:
            return None
        return self._summed().twice / (2 * self.positive * self.negative)

    def average_precision(self) -> float | None:
        """Area under the precision-recall curve as scikit-learn has it; None without a positive row.

        The sum over thresholds, from the highest, of the gain in recall times the precision; not interpolated.
        """
        return weighted_mean(self._summed().precision, self.positive) if self.positive else None

    def auc_error(self) -> float | None:
        """Standard error of `auc` (DeLong, DeLong and Clarke-Pearson 1988); None where it is not defined.

        With V_i the share of negatives below positive i (ties half) and W_j the share of positives above negative
        j: sqrt(var(V) / positives + var(W) / negatives).
        """
        if self.positive < 2 or self.negative < 2:
            return None
        mean, sums = self.auc(), self._summed()
        assert mean is not None
        variance = 0.0
        for total, rows in ((sums.above, self.negative), (sums.below, self.positive)):
            variance += max(0.0, weighted_mean(total, rows) - mean * mean) / (rows - 1)
        return float(variance**0.5)

    def _summed(self) -> _Sums:
        """One pass over the distinct scores, kept until there are further rows."""
        if self._sums is None:
            from sp_ray_ml.metrics._scores_kernel import sum_curves

            totals, below = np.array([self.negative, self.positive]), np.zeros(2, np.int64)
            sums = np.zeros((4, 2), np.int64)
            for runs in self.ascending():
                sum_curves(*runs, totals, below, sums)
            self._sums = _Sums(*((high << 26) + low for high, low in sums.tolist()))
        return self._sums

    def ascending(
        self,
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int64]]]:
        """The distinct scores of negatives and how often each is there, then those of positives, some at a time."""
        for low, high in self._ranges():
            (down, down_counts), (up, up_counts) = (each.between(low, high) for each in self._of)
            kind = np.result_type(down, up)
            yield _plain(down, kind), down_counts, _plain(up, kind), up_counts

    def _ranges(self) -> Iterator[tuple[float, float]]:
        """Ranges of scores with not much more than `_BLOCK` distinct ones each."""
        samples = [np.zeros(0)]
        for each in self._of:
            each.settle()
            samples += [np.asarray(values[_SAMPLE::_SAMPLE], np.float64) for values, _ in each.runs]
        cuts = np.sort(np.concatenate(samples))[_BLOCK // _SAMPLE :: _BLOCK // _SAMPLE]
        # Numbers that both widths have, so that runs of either are cut at the same place.
        cuts = np.unique(cuts.astype(np.float32)).astype(np.float64)
        ends = [-np.inf, *cuts.tolist(), np.inf]
        yield from pairwise(ends)


def auc_difference(
    first: npt.NDArray[Any], second: npt.NDArray[Any], truth: npt.NDArray[np.bool_]
) -> tuple[float, float] | None:
    """How much larger the AUC of the second scores is on the same rows, and the standard error of that.

    The error is that of DeLong, DeLong and Clarke-Pearson (1988) for correlated curves: that of the mean difference of
    each row's placements, over positives and over negatives.

    Args:
        first, second: Scores `[rows]`.
        truth: bool `[rows]`.

    Returns:
        The difference and its error; None without two rows of each kind.
    """
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if positives < 2 or negatives < 2:
        return None
    of_positive, of_negative = np.zeros(positives), np.zeros(negatives)
    for scores, sign in ((first, -1), (second, 1)):
        up, down = scores[truth], scores[~truth]
        of_positive += sign * _placements(up, down)
        of_negative += sign * (1 - _placements(down, up))
    error = (of_positive.var(ddof=1) / positives + of_negative.var(ddof=1) / negatives) ** 0.5
    return float(of_positive.mean()), float(error)


def _placements(scores: npt.NDArray[Any], others: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The share of others below each score, ties half."""
    in_order = np.sort(others)
    twice = np.searchsorted(in_order, scores) + np.searchsorted(in_order, scores, side="right")
    share: npt.NDArray[np.float64] = twice / (2 * len(others))
    return share
