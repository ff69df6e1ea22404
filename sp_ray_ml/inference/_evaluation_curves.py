"""`Curves`: areas under the ROC and precision-recall curves of two classes or more, in bounded memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sp_ray_ml.inference._evaluation_rows import classes_and_scores
from sp_ray_ml.metrics._room import Room
from sp_ray_ml.metrics.drawn_scores import DrawnScores
from sp_ray_ml.metrics.means import LEAST_UNITS, NORMAL, interval
from sp_ray_ml.metrics.scores import ScoreCounts

if TYPE_CHECKING:
    from sp_ray_ml.inference.evaluators import Classification

__all__ = ["Curves"]


class Curves:
    """An accumulator of rows.

    Args:
        settings: Which columns, and how calibration is measured.
    """

    def __init__(self, settings: Classification) -> None:
        self._settings = settings
        self._replicates, self._seed, self._draw_two = 0, 0, False
        self._room = Room()
        self._counts: list[ScoreCounts] = []
        self._drawn: list[DrawnScores] = []
        self._sure: ScoreCounts | None = None  # of the most probable class, whether it is the true one

    def draw(self, replicates: int, seed: int = 0, *, two: bool = False) -> Curves:
        """Draw the rows that are to come anew.

        Args:
            replicates: Of the bootstrap.
            seed: Likewise.
            two: Whether two classes are drawn, too, whose areas have intervals without replicates.

        Returns:
            This one.
        """
        self._replicates, self._seed, self._draw_two = replicates, seed, two
        return self

    def within(self, room: Room) -> Curves:
        """Hold no more in memory than one of those that share this room.

        Returns:
            This one.
        """
        self._room = room
        return self

    @property
    def two(self) -> bool:
        """Whether there are two classes."""
        return len(self._counts) == 1

    def update(self, rows: pa.RecordBatch, units: NDArray[np.uint64]) -> None:
        """Take some rows, with what tells each from all others."""
        truth, scores = classes_and_scores(self._settings, rows)
        # Of two classes one says all.
        of = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
        room = self._room.among(len(of))
        self._counts = self._counts or [ScoreCounts(room) for _ in of]
        for counts, column in zip(self._counts, of, strict=True):
            counts.update(scores[:, column], truth == column)
        if self._replicates and (len(of) > 1 or self._draw_two):
            self._drawn = self._drawn or [DrawnScores(self._replicates, self._seed, room) for _ in of]
            for drawn, column in zip(self._drawn, of, strict=True):
                drawn.update(scores[:, column], truth == column, units)
        if self._settings.strategy == "quantile":
            if len(of) == 1:
                self._sure = self._counts[0]
            else:
                predicted = scores.argmax(axis=1)
                self._sure = self._sure or ScoreCounts(room)
                self._sure.update(scores[np.arange(len(truth)), predicted], predicted == truth)

    def merge(self, other: Curves) -> None:
        """Take the rows of another one."""
        room = self._room.among(max(1, len(other._counts)))
        if not self._counts:
            self._counts = [ScoreCounts(room) for _ in other._counts]
        for mine, theirs in zip(self._counts, other._counts, strict=True):
            mine.merge(theirs)
        if not self._drawn:
            self._drawn = [DrawnScores(self._replicates, self._seed, room) for _ in other._drawn]
        for ours, those in zip(self._drawn, other._drawn, strict=False):
            ours.merge(those)
        if other._sure is not None:
            if len(self._counts) == 1:
                self._sure = self._counts[0]
            else:
                self._sure = self._sure or ScoreCounts(room)
                self._sure.merge(other._sure)

    def finish(self) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """The metrics that are defined, and intervals of 95 % for the areas.

        Of two classes, that of the AUC is DeLong's, that of average precision the logit interval (Boyd, Eng and Page
        2013, "Area under the precision-recall curve: point estimates and confidence intervals", section 4). Those of
        more classes are of the bootstrap.
        """
        metrics, intervals = {}, {}
        aucs, precisions = (
            [auc for each in self._counts if (auc := each.auc()) is not None],
            [
                area
                for each in self._counts
                if each.negative and (area := each.average_precision()) is not None
            ],
        )
        enough = bool(self._counts) and self._counts[0].positive + self._counts[0].negative >= LEAST_UNITS
        two = self.two and enough
        # A class that nobody has, or all, has no curve: as scikit-learn, a mean over the others is none.
        if self._counts and len(aucs) == len(self._counts):
            metrics["auc"] = sum(aucs) / len(aucs)
            if two and (error := self._counts[0].auc_error()) is not None:
                low, high = aucs[0] - NORMAL * error, aucs[0] + NORMAL * error
                intervals["auc"] = (max(0.0, low), min(1.0, high))
        if self._counts and len(precisions) == len(self._counts):
            metrics["pr_auc"] = sum(precisions) / len(precisions)
            if two and 0 < precisions[0] < 1:
                intervals["pr_auc"] = _logit_interval(precisions[0], self._counts[0].positive)
        if enough and not two:
            for name, values in self.drawn().items():
                if name in metrics and (ends := interval(values)) is not None:
                    intervals[name] = ends
        if self._sure is not None:
            from sp_ray_ml.metrics._calibration import quantile_calibration_error

            metrics["ece"] = quantile_calibration_error(self._sure, self._settings.bins)
        return metrics, intervals

    def drawn(self) -> dict[str, NDArray[np.float64]]:
        """`auc` and `pr_auc` of each replicate, float64 `[replicates]`; NaN where a class was not drawn."""
        if not self._drawn:
            return {}
        aucs, precisions = zip(*(each.areas() for each in self._drawn), strict=True)
        return {"auc": np.mean(aucs, axis=0), "pr_auc": np.mean(precisions, axis=0)}


def _logit_interval(area: float, positives: int) -> tuple[float, float]:
    """As of a share of so many, on the scale of log odds: it never leaves 0 to 1."""
    middle, reach = math.log(area / (1 - area)), NORMAL / math.sqrt(positives * area * (1 - area))
    low, high = ((1 + math.tanh((middle + side * reach) / 2)) / 2 for side in (-1, 1))
    return low, high
