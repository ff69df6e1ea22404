"""Ranking, evaluation beside baselines, and batch prediction.

The functions `rank` and `evaluate` have the names of their modules, which a package cannot both export: import them
from `sp_ray_ml.metrics.rank` and `sp_ray_ml.inference.evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.inference.baselines import Baseline, Ease, Popularity

__all__ = ["Baseline", "Ease", "Popularity"]


def __getattr__(name: str) -> Any:
    return lazy_attributes(__name__, name, {"baselines": ["Baseline", "Ease", "Popularity"]})


def __dir__() -> list[str]:
    return sorted(__all__)
