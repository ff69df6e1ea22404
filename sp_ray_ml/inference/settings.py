"""Settings of evaluation and batch prediction. Imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from sp_ray_ml.config import Custom, Settings
from sp_ray_ml.data.settings import WarehouseUrl
from sp_ray_ml.inference.baselines import BaselineField, Ease, Popularity
from sp_ray_ml.inference.evaluators import Evaluator, EvaluatorField, RowEvaluator

__all__ = ["EmbeddingTables", "Evaluate", "Output", "Predict"]

Metric = Literal[
    "rmse", "mae", "r2", "bias", "mape", "explained_variance",
    "log_loss", "accuracy", "f1", "auc", "pr_auc", "brier", "ece",
]  # fmt: skip
PositiveInt = Annotated[int, pydantic.Field(ge=1)]


class Evaluate(Settings):
    """Metrics on what was held out, beside baselines on the same split.

    `k`, `baselines` and `map` are of recommendations, `metrics` of the predictions of a table's column, whose baseline is the
    mean or the most frequent class.
    """

    k: list[PositiveInt] = pydantic.Field(default=[10, 20], min_length=1)
    """Lengths of the list of recommendations."""
    baselines: list[BaselineField] = pydantic.Field(default=[Popularity(), Ease()])
    """Models to compare with."""
    map: bool = False
    """Whether `map@k`, the mean average precision of recommendations, is measured beside the other metrics."""
    metrics: list[Metric] | None = pydantic.Field(default=None, min_length=1)
    """Metrics of a table, those of the label's task: `rmse`, `mae`, `r2`, and `bias`, `mape`, `explained_variance` of
    values; `log_loss`, `accuracy`, `f1` (macro), `auc` (two classes), and `pr_auc`, `brier`, `ece` of classes. Without:
    the first three, or the first four."""
    evaluators: list[EvaluatorField] = pydantic.Field(default=[])
    """Further evaluators of a table's test rows. They find all its columns, and `truth`, `prediction`, `probability` or
    `probabilities`."""
    by: list[str] = pydantic.Field(default=[])
    """Columns whose values are measured on their own: of the table of users (those that its features or title read), or
    of the table."""
    bootstrap: Annotated[int, pydantic.Field(ge=0)] = 0
    """Replicates for intervals of 95 %, 200 for instance; 0 for none."""

    @pydantic.field_validator("evaluators")
    @classmethod
    def _of_rows(cls, evaluators: list[Evaluator]) -> list[Evaluator]:
        for each in evaluators:
            if not isinstance(each, RowEvaluator | Custom):
                raise ValueError(f"{type(each).__name__} does not measure rows")  # noqa: TRY004 - pydantic's way
        return evaluators


class EmbeddingTables(Settings):
    """Tables for the node embeddings: the id and a list of numbers."""

    user: str | None = None
    """Table for the users' embeddings; not written without."""
    item: str | None = None
    """Table for the items' embeddings; not written without."""


class Output(Settings):
    """Where recommendations, or predictions, are written."""

    warehouse: WarehouseUrl
    """URL of the warehouse; the one that is read stays untouched."""
    table: str = "recommendations"
    """Table with the columns user, rank (from 1), item and score, the ids under their original names. For a `table`
    it is `predictions` without, with the columns of the rows and `prediction`, and `probability` or `probabilities`
    for classes."""
    mode: Literal["replace", "append", "partition"] = "replace"
    """Whether the table is replaced, grows, or has those partitions replaced that occur in what is written; it is
    done once, also when the run is resumed. Tables of embeddings are then replaced as a whole."""
    partition_by: str | None = pydantic.Field(default=None, min_length=1)
    """Column of the table whose values are its partitions; needed by the mode `partition`."""
    embeddings: EmbeddingTables = EmbeddingTables()
    """Tables for the node embeddings, when asked for."""

    @pydantic.model_validator(mode="after")
    def _mode_has_its_column(self) -> Output:
        if self.mode == "partition" and self.partition_by is None:
            raise ValueError(
                "mode partition needs the column whose values are replaced: partition_by: COLUMN"
            )
        return self


class Predict(Settings):
    """The best items for each user, those of the training history left out; or predictions for the rows of a table."""

    k: PositiveInt = 20
    """How many items a user."""
    users: str | None = None
    """Table of the input warehouse with the users to score, in the user's id column; all users without."""
    rows: str | None = pydantic.Field(default=None, min_length=1)
    """Table or query of the input warehouse with the rows to predict for; all rows of `table` without."""
    output: Output
