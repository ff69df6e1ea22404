"""Baselines to compare a recommender with: `Popularity` and `Ease`. Imports no heavy library."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from sp_ray_ml.config import Family, Settings

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from sp_ray_ml.metrics.rank import Scorer

__all__ = ["Baseline", "BaselineField", "Ease", "Popularity"]


class Baseline(Settings):
    """Base of baselines: settings that `fit` turns into a scorer."""

    @abstractmethod
    def fit(self, train: csr_array[Any]) -> Scorer:
        """Fit to the training events.

        Args:
            train: `[users, items]`; values are numbers of events, 1 where each pair counts once.

        Raises:
            ResourceError: The baseline cannot run at this size; evaluation reports it as skipped.
        """


class Popularity(Baseline):
    """The items with the most training events, the same for every user."""

    def fit(self, train: csr_array[Any]) -> Scorer:
        """Count the events of each item (the sum of its column)."""
        from sp_ray_ml.inference._baselines import PopularityScorer

        return PopularityScorer(train)


class Ease(Baseline):
    """EASE, a linear model from items to items that often is hard to beat (Steck 2019, arXiv 1905.03375)."""

    regularization: float = pydantic.Field(default=200.0, gt=0)
    """λ, the L2 penalty; larger for larger data."""
    max_items: int = pydantic.Field(default=20_000, ge=1)
    """Catalogues above this size are refused: memory grows with the square of the items, time with the cube."""

    def fit(self, train: csr_array[Any]) -> Scorer:
        """Solve for the weights in closed form.

        With X the binary users × items matrix, P = (XᵀX + λI)⁻¹ and B = I - P · diagMat(1 / diag(P)), whose
        diagonal is 0, the scores are X B.

        Raises:
            ResourceError: There are more than `max_items` items.
        """
        from sp_ray_ml.inference._baselines import EaseScorer

        return EaseScorer(train, self.regularization, self.max_items)


BaselineField = Annotated[
    Baseline,
    Family(
        "baseline",
        {
            "popularity": "sp_ray_ml.inference.baselines:Popularity",
            "ease": "sp_ray_ml.inference.baselines:Ease",
        },
    ),
]
