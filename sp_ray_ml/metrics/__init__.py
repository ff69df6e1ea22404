"""Metrics as accumulators (`update`, `merge`, `finish`), and the choice of the best k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.metrics.ranking import RankingMetrics
    from sp_ray_ml.metrics.topk import top_k

__all__ = ["RankingMetrics", "top_k"]


def __getattr__(name: str) -> Any:
    return lazy_attributes(__name__, name, {"ranking": ["RankingMetrics"], "topk": ["top_k"]})
