"""Ranking, evaluation of models and of tables of predictions, comparison, and batch prediction.

The functions `rank` and `evaluate` have the names of their modules, which a package cannot both export: import them
from `sp_ray_ml.metrics.rank` and `sp_ray_ml.inference.evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.inference.baselines import Baseline, Ease, Popularity
    from sp_ray_ml.inference.batch_prediction import BatchResult, batch_predict
    from sp_ray_ml.inference.batch_settings import BatchScaling, Pool, Rejected
    from sp_ray_ml.inference.compare import Comparison, compare_units
    from sp_ray_ml.inference.evaluation import Evaluation, evaluate_predictions
    from sp_ray_ml.inference.evaluators import (
        Classification,
        Evaluator,
        Ranking,
        Regression,
        RowEvaluator,
    )
    from sp_ray_ml.inference.settings import Output

__all__ = [
    "Baseline",
    "BatchResult",
    "BatchScaling",
    "Classification",
    "Comparison",
    "Ease",
    "Evaluation",
    "Evaluator",
    "Output",
    "Pool",
    "Popularity",
    "Ranking",
    "Regression",
    "Rejected",
    "RowEvaluator",
    "batch_predict",
    "compare_units",
    "evaluate_predictions",
]


def __getattr__(name: str) -> Any:
    modules = {
        "baselines": ["Baseline", "Ease", "Popularity"],
        "batch_prediction": ["BatchResult", "batch_predict"],
        "batch_settings": ["BatchScaling", "Pool", "Rejected"],
        "compare": ["Comparison", "compare_units"],
        "evaluation": ["Evaluation", "evaluate_predictions"],
        "evaluators": ["Classification", "Evaluator", "Ranking", "Regression", "RowEvaluator"],
        "settings": ["Output"],
    }
    return lazy_attributes(__name__, name, modules)


def __dir__() -> list[str]:
    return sorted(__all__)
