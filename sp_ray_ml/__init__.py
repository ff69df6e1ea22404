"""Machine learning on Ray: from a warehouse of events to recommendations, on a laptop or a cluster, from one file.

import sp_ray_ml

result = sp_ray_ml.run("movielens.yaml")
print(result.metrics["recall@20"])
predictor = sp_ray_ml.Predictor.load(result.checkpoint_path)
predictor.recommend([196], k=5)
"""

from __future__ import annotations

import os

# Told nothing, MKL (PyTorch's on x86) sums a row up in an order that depends on how the row lies in memory, so that its
# last bits depend on its place in the batch wherever a layer's width is no multiple of 4. MKL reads this at its first
# product, so it is set before anything else: two processes would else compute the same in different ways.
os.environ.setdefault("MKL_CBWR", "AUTO")

TYPE_CHECKING = (
    False  # type checkers know the name; the import of `typing` alone would double this module's cost
)

if TYPE_CHECKING:
    from typing import Any

    from sp_ray_ml._predict_job import PredictResult
    from sp_ray_ml.errors import SpRayError
    from sp_ray_ml.inference.batch_prediction import BatchResult, batch_predict
    from sp_ray_ml.pipeline import Pipeline, RunResult, predict, run
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.pyg import PyGTrainer
    from sp_ray_ml.train.recommender import Recommender

__version__ = "0.1.0"

__all__ = [
    "BatchResult",
    "Pipeline",
    "PredictResult",
    "Predictor",
    "PyGTrainer",
    "Recommender",
    "RunResult",
    "SpRayError",
    "__version__",
    "batch_predict",
    "predict",
    "run",
]


def __getattr__(name: str) -> Any:
    from sp_ray_ml.optional import lazy_attributes

    return lazy_attributes(
        __name__,
        name,
        {
            "errors": ["SpRayError"],
            "inference.batch_prediction": ["BatchResult", "batch_predict"],
            "_predict_job": ["PredictResult"],
            "pipeline": ["Pipeline", "RunResult", "predict", "run"],
            "train.predictor": ["Predictor"],
            "train.recommender": ["Recommender"],
            "train.pyg": ["PyGTrainer"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
