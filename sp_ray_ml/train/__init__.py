"""Training: trainers, where they run, and the sealed predictor that they leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.train.context import TrainContext, run_loop
    from sp_ray_ml.train.losses import BPR, Loss, SampledSoftmax
    from sp_ray_ml.train.predictor import Predictor, Recommender
    from sp_ray_ml.train.pyg import PyGTrainer, RecommenderTraining, Supervision, Trainer
    from sp_ray_ml.train.settings import EarlyStopping, Scaling, Schedule

__all__ = [
    "BPR",
    "EarlyStopping",
    "Loss",
    "Predictor",
    "PyGTrainer",
    "Recommender",
    "RecommenderTraining",
    "SampledSoftmax",
    "Scaling",
    "Schedule",
    "Supervision",
    "TrainContext",
    "Trainer",
    "run_loop",
]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "context": ["TrainContext", "run_loop"],
            "losses": ["BPR", "Loss", "SampledSoftmax"],
            "predictor": ["Predictor", "Recommender"],
            "pyg": ["PyGTrainer", "RecommenderTraining", "Supervision", "Trainer"],
            "settings": ["EarlyStopping", "Scaling", "Schedule"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
