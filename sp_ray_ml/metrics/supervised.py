"""Classification and regression metrics as accumulators: however the rows are cut, the same result to the bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sp_ray_ml.errors import DataError

__all__ = ["ClassificationMetrics", "RegressionMetrics", "SupervisedMetrics", "larger_is_better"]

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
)
_UNIT_BITS = 40


def larger_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one.

    Args:
        metric: Its name as ours or XGBoost's: `validation/log_loss`, `mlogloss`, `error@0.6`, `poisson-nloglik`.
    """
    return not metric.rpartition("/")[2].partition("@")[0].endswith(_LOWER)


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


def _fixed(values: npt.NDArray[np.float64]) -> int:
    """The sum as a whole number of 2^-40: whole numbers add up to the same in any order."""
    scaled = np.rint(np.ldexp(values, _UNIT_BITS))
    largest = np.abs(scaled).max(initial=0.0)
    if largest < 2.0**62:
        # So few at a time that 64 bits hold their sum.
        few = max(1, int(2.0**62 / max(1.0, largest)))
        whole = scaled.astype(np.int64)
        if few >= len(whole):
            return int(whole.sum())
        return sum(np.add.reduceat(whole, np.arange(0, len(whole), few)).tolist())
    return sum(map(int, scaled))


def _mean(total: int, rows: int) -> float:
    return float(total / rows / 2**_UNIT_BITS)


class RegressionMetrics(SupervisedMetrics):
    """`rmse`, `mae` (both in the label's unit) and `r2` = 1 - sum((y - ŷ)²) / sum((y - mean(y))²).

    Without variance in the truth there is no `r2`.
    """

    main = "rmse"

    def __init__(self) -> None:
        self._rows = 0
        self._sums = [0, 0, 0, 0]  # |e|, e², y, y²

    def update(self, scores: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
        """Take predictions and true values, [rows] each."""
        truth = truth.astype(np.float64)
        error = scores.reshape(-1).astype(np.float64) - truth
        self._rows += len(truth)
        for place, values in enumerate((np.abs(error), error * error, truth, truth * truth)):
            self._sums[place] += _fixed(values)

    def merge(self, following: Self) -> None:
        """Take what another one took."""
        self._rows += following._rows
        self._sums = [a + b for a, b in zip(self._sums, following._sums, strict=True)]

    def finish(self) -> dict[str, float]:
        """The metrics."""
        if not self._rows:
            raise DataError("there is no row to measure on", where="evaluate")
        absolute, square, mean, mean_square = (_mean(total, self._rows) for total in self._sums)
        metrics = {"rmse": square**0.5, "mae": absolute}
        if (variance := mean_square - mean * mean) > 0:
            metrics["r2"] = 1 - square / variance
        return metrics


class ClassificationMetrics(SupervisedMetrics):
    """`log_loss` (natural logarithm), `accuracy`, `f1` (macro), and `auc` where there are two classes.

    `auc` is the area under the ROC curve, ties counted half (Mann-Whitney U); it keeps 9 bytes a row.

    Args:
        classes: How many classes there are.
    """

    main = "log_loss"

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._rows = 0
        self._loss = 0
        self._confusion = np.zeros((classes, classes), np.int64)
        self._scores: list[npt.NDArray[np.float64]] = []
        self._truth: list[npt.NDArray[np.bool_]] = []

    def update(self, scores: npt.NDArray[Any], truth: npt.NDArray[Any]) -> None:
        """Take probabilities [rows, classes] and true classes [rows], whole numbers from 0."""
        truth = truth.astype(np.int64)
        scores = scores.astype(np.float64)
        own = scores[np.arange(len(truth)), truth]
        self._rows += len(truth)
        # As scikit-learn: no probability is less than the smallest step of a 32-bit number.
        self._loss += _fixed(-np.log(np.clip(own, np.finfo(np.float32).eps, 1.0)))
        pairs = truth * self._classes + scores.argmax(axis=1)
        self._confusion += np.bincount(pairs, minlength=self._classes**2).reshape(self._confusion.shape)
        if self._classes == 2:
            self._scores.append(scores[:, 1].copy())
            self._truth.append(truth == 1)

    def merge(self, following: Self) -> None:
        """Take what another one took."""
        self._rows += following._rows
        self._loss += following._loss
        self._confusion += following._confusion
        self._scores += following._scores
        self._truth += following._truth

    def finish(self) -> dict[str, float]:
        """The metrics."""
        if not self._rows:
            raise DataError("there is no row to measure on", where="evaluate")
        right = np.diag(self._confusion)
        either = self._confusion.sum(axis=0) + self._confusion.sum(axis=1)
        f1 = 2 * right[either > 0] / either[either > 0]
        metrics = {
            "log_loss": _mean(self._loss, self._rows),
            "accuracy": float(right.sum() / self._rows),
            "f1": float(f1.mean()),
        }
        if self._classes == 2 and (auc := self._auc()) is not None:
            metrics["auc"] = auc
        return metrics

    def _auc(self) -> float | None:
        scores, truth = np.concatenate(self._scores), np.concatenate(self._truth)
        positive = int(truth.sum())
        negative = len(truth) - positive
        if not positive or not negative:
            return None
        order = np.argsort(scores, kind="stable")
        scores, truth = scores[order], truth[order]
        first = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
        ends = np.r_[first[1:], len(scores)]
        # Twice the mean rank of a run of equal scores is a whole number, so the sum is exact.
        twice = int(((first + 1 + ends) * np.add.reduceat(truth.astype(np.int64), first)).sum())
        return (twice - positive * (positive + 1)) / (2 * positive * negative)
