"""`Curves`: areas under the ROC and precision-recall curves of two classes or more, in bounded memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sp_ray_ml.inference._evaluation_rows import classes_and_scores
from sp_ray_ml.metrics.means import LEAST_UNITS, NORMAL
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
        self._counts: list[ScoreCounts] = []
        self._sure: ScoreCounts | None = None  # of the most probable class, whether it is the true one

    def update(self, rows: pa.RecordBatch) -> None:
        """Take some rows."""
        truth, scores = classes_and_scores(self._settings, rows)
        # Of two classes one says all.
        of = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
        self._counts = self._counts or [ScoreCounts() for _ in of]
        for counts, column in zip(self._counts, of, strict=True):
            counts.update(scores[:, column], truth == column)
        if self._settings.strategy == "quantile":
            if len(of) == 1:
                self._sure = self._counts[0]
            else:
                predicted = scores.argmax(axis=1)
                self._sure = self._sure or ScoreCounts()
                self._sure.update(scores[np.arange(len(truth)), predicted], predicted == truth)

    def merge(self, other: Curves) -> None:
        """Take the rows of another one."""
        if not self._counts:
            self._counts = [ScoreCounts() for _ in other._counts]
        for mine, theirs in zip(self._counts, other._counts, strict=True):
            mine.merge(theirs)
        if other._sure is not None:
            if len(self._counts) == 1:
                self._sure = self._counts[0]
            else:
                self._sure = self._sure or ScoreCounts()
                self._sure.merge(other._sure)

    def finish(self) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """The metrics that are defined, and intervals of 95 % for the areas of two classes.

        That of the AUC is DeLong's, that of average precision the logit interval (Boyd, Eng and Page 2013, "Area
        under the precision-recall curve: point estimates and confidence intervals", section 4).
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
        two = len(self._counts) == 1 and self._counts[0].positive + self._counts[0].negative >= LEAST_UNITS
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
        if self._sure is not None:
            from sp_ray_ml.metrics._calibration import quantile_calibration_error

            metrics["ece"] = quantile_calibration_error(self._sure, self._settings.bins)
        return metrics, intervals


def _logit_interval(area: float, positives: int) -> tuple[float, float]:
    """As of a share of so many, on the scale of log odds: it never leaves 0 to 1."""
    middle, reach = math.log(area / (1 - area)), NORMAL / math.sqrt(positives * area * (1 - area))
    low, high = ((1 + math.tanh((middle + side * reach) / 2)) / 2 for side in (-1, 1))
    return low, high
