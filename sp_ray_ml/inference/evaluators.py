"""Evaluators: what is measured of a table of predictions. Settings; the work is imported when it is done."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from sp_ray_ml.config import Family, Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from sp_ray_ml.inference._evaluation_curves import Curves

__all__ = ["Classification", "Evaluator", "EvaluatorField", "Ranking", "Regression", "RowEvaluator"]

PositiveInt = Annotated[int, pydantic.Field(ge=1)]


class Evaluator(Settings):
    """Base of evaluators: what is measured of a table of predictions. One of your own is a `RowEvaluator`."""


class RowEvaluator(Evaluator):
    """Base of evaluators of rows: values of each row, whose means (or functions of means) are the metrics.

    One of your own says which columns it reads and what their values are; segments, bootstrap intervals, the values
    of each row for `sp-ray compare`, and any number of rows come with it.
    """

    @abstractmethod
    def columns(self) -> list[str]:
        """The columns that it reads."""

    @abstractmethod
    def values(self, rows: pa.RecordBatch) -> Mapping[str, NDArray[Any]]:
        """What is measured of each row.

        Args:
            rows: Some rows, with `columns()`.

        Returns:
            Finite numbers `[rows]` by name, the same names for all rows.
        """

    def squared(self) -> list[str]:
        """Names of values of which `metrics` needs `NAME square`, the mean of their squares, and `NAME variance` too.

        Unlike differences of means they are exact for values that lie far from 0.
        """
        return []

    def metrics(self, means: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """The metrics, as functions of means: `rmse` is the root of the mean square. The means themselves without.

        Args:
            means: The mean of each value and what `squared` asks for, as an array: of all rows, or of bootstrap
                replicates.

        Returns:
            Metrics by name, each an array of the same length; NaN where one is not defined.
        """
        return means

    def larger_is_better(self, metric: str) -> bool | None:  # noqa: ARG002 - for those that override it
        """Which way a metric is better, for the verdict of `sp-ray compare`.

        Args:
            metric: One of those that `metrics` gives.

        Returns:
            None where neither way is. A metric with the name of one of ours, such as `mae`, is then better as that
            one is.
        """
        return None

    def curves(self) -> Curves | None:
        """What cannot be had from means, such as the area under a curve: an accumulator, or None."""
        return None


class Regression(RowEvaluator):
    """`rmse`, `mae`, `r2`, `bias` (the mean of prediction - truth), `mape` and `explained_variance`."""

    truth: str = "truth"
    """Column with the true values."""
    prediction: str = "prediction"
    """Column with the predicted ones."""

    def columns(self) -> list[str]:
        """Truth and prediction."""
        return [self.truth, self.prediction]

    def values(self, rows: pa.RecordBatch) -> Mapping[str, NDArray[Any]]:
        """Errors and truths."""
        from sp_ray_ml.inference._evaluation_rows import regression_values

        return regression_values(self, rows)

    def squared(self) -> list[str]:
        """Those of which there are squares and variances."""
        return ["error", "truth"]

    def metrics(self, means: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """As scikit-learn has them; without variance in the truth there is no `r2` and no `explained_variance`."""
        from sp_ray_ml.inference._evaluation_rows import regression_metrics

        return regression_metrics(means)


class Classification(RowEvaluator):
    """`log_loss`, `brier`, `accuracy`, `f1` (macro), `ece`, `auc` (ROC) and `pr_auc` (average precision).

    For two classes give `probability`, that of the positive one; for more `probabilities`, a list a row in the order
    of `classes`. `auc` and `pr_auc` are then means over the classes, each against the rest. `ece` is the expected
    calibration error in `bins` of equal width: the sum over bins of share × |mean probability - share of positives|,
    of the most probable class where there are more than two. With the `strategy` quantile bins have as many rows each;
    such an `ece` is a function of all rows, and has no interval.
    """

    truth: str = "truth"
    """Column with the true classes."""
    probability: str = "probability"
    """Column with the probability of the positive class."""
    probabilities: str | None = None
    """Column with a list of probabilities, one a class."""
    classes: list[str | int | bool] | None = pydantic.Field(default=None, min_length=2)
    """All classes in the order of `probabilities`; the last of two is the positive one. Without: false and true, or
    0 and 1, or 0 to n - 1."""
    bins: PositiveInt = 10
    """Bins of the calibration."""
    strategy: Literal["uniform", "quantile"] = "uniform"
    """Whether bins are of equal width or have as many rows each."""

    def columns(self) -> list[str]:
        """Truth and probabilities."""
        return [self.truth, self.probabilities or self.probability]

    def values(self, rows: pa.RecordBatch) -> Mapping[str, NDArray[Any]]:
        """Losses, hits, and what the confusion matrix and the bins of calibration are made of."""
        from sp_ray_ml.inference._evaluation_rows import classification_values

        return classification_values(self, rows)

    def metrics(self, means: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """As scikit-learn has them."""
        from sp_ray_ml.inference._evaluation_rows import classification_metrics

        return classification_metrics(self, means)

    def curves(self) -> Curves:
        """Areas under the ROC and the precision-recall curve."""
        from sp_ray_ml.inference._evaluation_curves import Curves

        return Curves(self)


class Ranking(Evaluator):
    """Ranked lists beside what users then chose: the metrics of the main job, MAP, and how lists spread and vary.

    `recall@k`, `ndcg@k`, `precision@k`, `hit_rate@k`, `mrr@k` and `map@k` are means over the users with a test item;
    `coverage@k`, `gini@k` and `entropy@k` are of the lists of these. With a table of items also `popularity@k`,
    `tail@k` and `novelty@k` (of a column `popularity`) and `diversity@k` (of a column `features`). The formulas are in
    `docs/evaluation.md`.
    """

    user: str = "user_id"
    """Column with the users, in all tables."""
    item: str = "item_id"
    """Column with the items, in all tables."""
    rank: str = "rank"
    """Column with an item's place in its user's list: lower is better."""
    score: str | None = None
    """Column with scores in place of ranks: higher is better. Equal ones stay in the order of the rows."""
    k: list[PositiveInt] = pydantic.Field(default=[10, 20], min_length=1)
    """Lengths of the list."""
    popularity: str | None = None
    """Column of the items' table: how many events an item has in training."""
    tail: float = pydantic.Field(default=0.1, gt=0)
    """The long tail. Up to 1: that share of the items with an event, the least popular first; above: the items with at
    most so many events."""
    features: str | None = None
    """Column of the items' table with what tells items apart: a category, a list of categories (text), or a vector."""


EvaluatorField = Annotated[
    Evaluator,
    Family(
        "evaluator",
        {
            "ranking": "sp_ray_ml.inference.evaluators:Ranking",
            "classification": "sp_ray_ml.inference.evaluators:Classification",
            "regression": "sp_ray_ml.inference.evaluators:Regression",
        },
    ),
]
