"""Classification and regression metrics as accumulators: however the rows are cut, the same result to the bit."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import DataError
from sp_ray_ml.metrics._exact import exact_mean, exact_square_mean, exact_squares, exact_sum, exact_variance
from sp_ray_ml.metrics.scores import ScoreCounts

__all__ = [
    "ClassificationMetrics",
    "RegressionMetrics",
    "SupervisedMetrics",
    "known_direction",
    "larger_is_better",
]

_LOWER = (
    "loss",
    "error",
    "rmse",
    "rmsle",
    "mse",
    "mae",
    "mape",
    "mphe",
    "nloglik",
    "deviance",
    "quantile",
    "expectile",
    "brier",
    "ece",
    "gini",
)


def larger_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one.

    Args:
        metric: Its name as ours or XGBoost's: `validation/log_loss`, `mlogloss`, `error@0.6`, `poisson-nloglik`.
    """
    return not metric.rpartition("/")[2].partition("@")[0].endswith(_LOWER)


_OURS = {
    **dict.fromkeys(("rmse", "mae", "mape", "log_loss", "brier", "ece", "gini"), False),
    **dict.fromkeys(("r2", "explained_variance", "accuracy", "f1", "auc", "pr_auc"), True),
    **dict.fromkeys(("recall", "precision", "hit_rate", "mrr", "ndcg", "map"), True),
    **dict.fromkeys(("coverage", "tail", "novelty", "diversity"), True),
}
"""Of popularity and entropy, which tell what lists are like, neither more nor less is better."""


def known_direction(metric: str) -> bool | None:
    """Whether a larger value of a metric of ours is the better one; None where neither is, and of other metrics."""
    return _OURS.get(metric.partition("/")[0].partition("@")[0])


class SupervisedMetrics(ABC):
    """How well predictions match the truth."""

    main: str
    """The metric that a training is judged by, unless another is named."""

    @abstractmethod
    def update(self, scores: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
        """Take some rows."""

    @abstractmethod
    def merge(self, following: Self) -> None:
        """Take what another one took."""

    @abstractmethod
    def finish(self) -> dict[str, float]:
        """The metrics.

        Raises:
            DataError: There was no row.
        """


class RegressionMetrics(SupervisedMetrics):
    """`rmse`, `mae` (both in the label's unit) and `r2` = 1 - sum((y - ŷ)²) / sum((y - mean(y))²).

    Without variance in the truth there is no `r2`.
    """

    main = "rmse"

    def __init__(self) -> None:
        self._rows = 0
        self._sums = [0, 0, 0, 0]  # of |e|, e², y, y²

    def update(self, scores: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
        """Take predictions and true values, [rows] each."""
        truth = truth.astype(np.float64)
        error = scores.reshape(-1).astype(np.float64) - truth
        self._rows += len(truth)
        sums = (exact_sum(np.abs(error)), exact_squares(error), exact_sum(truth), exact_squares(truth))
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]

    def merge(self, following: Self) -> None:
        """Take what another one took."""
        self._rows += following._rows
        self._sums = [a + b for a, b in zip(self._sums, following._sums, strict=True)]

    def finish(self) -> dict[str, float]:
        """The metrics."""
        if not self._rows:
            raise DataError("there is no row to measure on", where="evaluate")
        absolute, squares, truth, truth_squares = self._sums
        square = exact_square_mean(squares, self._rows)
        metrics = {"rmse": math.sqrt(square), "mae": exact_mean(absolute, self._rows)}
        if (variance := exact_variance(truth, truth_squares, self._rows)) > 0:
            metrics["r2"] = 1 - square / variance
        return metrics


class ClassificationMetrics(SupervisedMetrics):
    """`log_loss` (natural logarithm), `accuracy`, `f1` (macro), and `auc` where there are two classes.

    `auc` is the area under the ROC curve, ties counted half (Mann-Whitney U), of `ScoreCounts`.

    Args:
        classes: How many classes there are.
        auc: Whether `auc` is measured, which takes longer than all else.
    """

    main = "log_loss"

    def __init__(self, classes: int, *, auc: bool = True) -> None:
        self.classes, self._auc = classes, auc and classes == 2
        self._rows = 0
        self._loss = 0
        self._confusion = np.zeros((classes, classes), np.int64)
        self._counts = ScoreCounts()

    def update(self, scores: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
        """Take probabilities [rows, classes] and true classes [rows], whole numbers from 0."""
        truth = truth.astype(np.int64)
        given, scores = scores, scores.astype(np.float64)
        own = scores[np.arange(len(truth)), truth]
        self._rows += len(truth)
        # As scikit-learn: no probability is less than the smallest step of a 32-bit number.
        self._loss += exact_sum(-np.log(np.clip(own, np.finfo(np.float32).eps, 1.0)))
        pairs = truth * self.classes + scores.argmax(axis=1)
        self._confusion += np.bincount(pairs, minlength=self.classes**2).reshape(self._confusion.shape)
        if self._auc:
            self._counts.update(given[:, 1], truth == 1)

    def merge(self, following: Self) -> None:
        """Take what another one took."""
        self._rows += following._rows
        self._loss += following._loss
        self._confusion += following._confusion
        self._counts.merge(following._counts)

    def finish(self) -> dict[str, float]:
        """The metrics."""
        if not self._rows:
            raise DataError("there is no row to measure on", where="evaluate")
        right = np.diag(self._confusion)
        either = self._confusion.sum(axis=0) + self._confusion.sum(axis=1)
        f1 = 2 * right[either > 0] / either[either > 0]
        metrics = {
            "log_loss": exact_mean(self._loss, self._rows),
            "accuracy": float(right.sum() / self._rows),
            "f1": float(f1.mean()),
        }
        if self._auc and (auc := self._counts.auc()) is not None:
            metrics["auc"] = auc
        return metrics
