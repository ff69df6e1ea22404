"""`rank` by its name in this layer; it lies in `metrics`, where `train` may import it too."""

from __future__ import annotations

from sp_ray_ml.metrics.rank import Scorer, canonical_batch, rank

__all__ = ["Scorer", "canonical_batch", "rank"]
