"""Ranking, evaluation beside baselines, and batch prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.inference.baselines import Baseline, Ease, Popularity, Scorer
    from sp_ray_ml.inference.evaluate import evaluate, evaluate_all
    from sp_ray_ml.inference.rank import rank

__all__ = ["Baseline", "Ease", "Popularity", "Scorer", "evaluate", "evaluate_all", "rank"]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "baselines": ["Baseline", "Ease", "Popularity", "Scorer"],
            "evaluate": ["evaluate", "evaluate_all"],
            "rank": ["rank"],
        },
    )
