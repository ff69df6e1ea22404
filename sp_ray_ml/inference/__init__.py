"""Ranking, evaluation beside baselines, and batch prediction.

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
    from sp_ray_ml.inference.settings import Output

__all__ = [
    "Baseline",
    "BatchResult",
    "BatchScaling",
    "Ease",
    "Output",
    "Pool",
    "Popularity",
    "Rejected",
    "batch_predict",
]


def __getattr__(name: str) -> Any:
    modules = {
        "baselines": ["Baseline", "Ease", "Popularity"],
        "batch_prediction": ["BatchResult", "batch_predict"],
        "batch_settings": ["BatchScaling", "Pool", "Rejected"],
        "settings": ["Output"],
    }
    return lazy_attributes(__name__, name, modules)


def __dir__() -> list[str]:
    return sorted(__all__)
