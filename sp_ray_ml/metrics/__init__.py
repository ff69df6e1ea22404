"""Metrics as accumulators (`update`, `merge`, `finish`), and the ranking that they measure.

The function `rank` has the name of its module: import it from `sp_ray_ml.metrics.rank`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.metrics.rank import Scorer
    from sp_ray_ml.metrics.ranking import RankingMetrics
    from sp_ray_ml.metrics.topk import top_k

__all__ = ["RankingMetrics", "Scorer", "top_k"]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__, name, {"rank": ["Scorer"], "ranking": ["RankingMetrics"], "topk": ["top_k"]}
    )


def __dir__() -> list[str]:
    return sorted(__all__)
