"""Settings of evaluation and batch prediction. Imports no heavy library."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from sp_ray_ml.config import Settings
from sp_ray_ml.inference.baselines import BaselineField, Ease, Popularity

__all__ = ["EmbeddingTables", "Evaluate", "Output", "Predict"]

PositiveInt = Annotated[int, pydantic.Field(ge=1)]


class Evaluate(Settings):
    """Ranking metrics on the held-out events, beside baselines on the same split."""

    k: list[PositiveInt] = pydantic.Field(default=[10, 20], min_length=1)
    """Lengths of the list of recommendations."""
    baselines: list[BaselineField] = pydantic.Field(default=[Popularity(), Ease()])
    """Models to compare with."""


class EmbeddingTables(Settings):
    """Tables for the node embeddings: the id and a list of numbers."""

    user: str | None = None
    """Table for the users' embeddings; not written without."""
    item: str | None = None
    """Table for the items' embeddings; not written without."""


class Output(Settings):
    """Where recommendations are written."""

    warehouse: str
    """URL of the warehouse; the one that is read stays untouched."""
    table: str = "recommendations"
    """Table with the columns user, rank (from 1), item and score, the ids under their original names."""
    mode: Literal["replace", "append"] = "replace"
    """Whether the table is replaced or grows; an append is made once, also when the run is resumed."""
    embeddings: EmbeddingTables = EmbeddingTables()
    """Tables for the node embeddings, when asked for."""


class Predict(Settings):
    """The best items for each user, those of the training history left out."""

    k: PositiveInt = 20
    """How many items a user."""
    users: str | None = None
    """Table of the input warehouse with the users to score, in the user's id column; all users without."""
    output: Output
