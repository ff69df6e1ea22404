"""`Curves`: areas under the ROC and precision-recall curves of two classes or more, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from sp_ray_ml.inference._evaluation_rows import classes_and_scores
from sp_ray_ml.metrics.scores import ScoreCounts

if TYPE_CHECKING:
    from sp_ray_ml.inference.evaluators import Classification

__all__ = ["Curves"]

_NORMAL = 1.959963984540054  # the 97.5 % point of the normal distribution


class Curves:
    """An accumulator of rows.

    Args:
        settings: Which columns.
    """

    def __init__(self, settings: Classification) -> None:
        self._settings = settings
        self._counts: list[ScoreCounts] = []

    def update(self, rows: pa.RecordBatch) -> None:
        """Take some rows."""
        truth, scores = classes_and_scores(self._settings, rows)
        # Of two classes one says all.
        of = [1] if scores.shape[1] == 2 else list(range(scores.shape[1]))
        self._counts = self._counts or [ScoreCounts() for _ in of]
        for counts, column in zip(self._counts, of, strict=True):
            counts.update(scores[:, column].copy(), truth == column)

    def merge(self, other: Curves) -> None:
        """Take the rows of another one."""
        if not self._counts:
            self._counts = [ScoreCounts() for _ in other._counts]
        for mine, theirs in zip(self._counts, other._counts, strict=True):
            mine.merge(theirs)

    def finish(self) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
        """The metrics that are defined, and an interval of 95 % for the AUC of two classes (DeLong's)."""
        metrics, intervals = {}, {}
        aucs, precisions = (
            [auc for each in self._counts if (auc := each.auc()) is not None],
            [
                area
                for each in self._counts
                if each.negative and (area := each.average_precision()) is not None
            ],
        )
        # A class that nobody has, or all, has no curve: as scikit-learn, a mean over the others is none.
        if self._counts and len(aucs) == len(self._counts):
            metrics["auc"] = sum(aucs) / len(aucs)
            if len(aucs) == 1 and (error := self._counts[0].auc_error()) is not None:
                low, high = aucs[0] - _NORMAL * error, aucs[0] + _NORMAL * error
                intervals["auc"] = (max(0.0, low), min(1.0, high))
        if self._counts and len(precisions) == len(self._counts):
            metrics["pr_auc"] = sum(precisions) / len(precisions)
        return metrics, intervals
