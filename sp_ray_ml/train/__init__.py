"""Training: trainers, where they run, and the sealed predictor that they leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sp_ray_ml.optional import lazy_attributes

if TYPE_CHECKING:
    from sp_ray_ml.train._loop_trainer import LoopTraining
    from sp_ray_ml.train._run_loop import run_loop
    from sp_ray_ml.train.context import TrainContext
    from sp_ray_ml.train.losses import BPR, Loss, SampledSoftmax
    from sp_ray_ml.train.predictor import Predictor
    from sp_ray_ml.train.pyg import GNNTraining, PyGTrainer, RecommenderTraining, Supervision
    from sp_ray_ml.train.recommender import Recommender
    from sp_ray_ml.train.rllib import RLlibTrainer
    from sp_ray_ml.train.settings import EarlyStopping, Scaling, Schedule
    from sp_ray_ml.train.table import Learned, TableTrainer, TrainResult
    from sp_ray_ml.train.table_predictor import TableModel, TablePredictor
    from sp_ray_ml.train.tasks import LinkPrediction, NodeClassification, Recommendation
    from sp_ray_ml.train.tensorflow import TensorFlowTrainer
    from sp_ray_ml.train.torch import (
        MAE,
        MLP,
        MSE,
        CrossEntropy,
        Huber,
        ModelInputs,
        Network,
        Optimizer,
        TorchTrainer,
    )
    from sp_ray_ml.train.trainer import Trainer
    from sp_ray_ml.train.tuning import Domain, Trial, Tune, TuneResult
    from sp_ray_ml.train.two_tower import TwoTowerTrainer, TwoTowerTraining
    from sp_ray_ml.train.two_tower_recommender import TwoTowerRecommender
    from sp_ray_ml.train.xgboost import XGBoostTrainer

__all__ = [
    "BPR",
    "MAE",
    "MLP",
    "MSE",
    "CrossEntropy",
    "Domain",
    "EarlyStopping",
    "GNNTraining",
    "Huber",
    "Learned",
    "LinkPrediction",
    "LoopTraining",
    "Loss",
    "ModelInputs",
    "Network",
    "NodeClassification",
    "Optimizer",
    "Predictor",
    "PyGTrainer",
    "RLlibTrainer",
    "Recommendation",
    "Recommender",
    "RecommenderTraining",
    "SampledSoftmax",
    "Scaling",
    "Schedule",
    "Supervision",
    "TableModel",
    "TablePredictor",
    "TableTrainer",
    "TensorFlowTrainer",
    "TorchTrainer",
    "TrainContext",
    "TrainResult",
    "Trainer",
    "Trial",
    "Tune",
    "TuneResult",
    "TwoTowerRecommender",
    "TwoTowerTrainer",
    "TwoTowerTraining",
    "XGBoostTrainer",
    "run_loop",
]


def __getattr__(name: str) -> Any:
    return lazy_attributes(
        __name__,
        name,
        {
            "_loop_trainer": ["LoopTraining"],
            "_run_loop": ["run_loop"],
            "context": ["TrainContext"],
            "losses": ["BPR", "Loss", "SampledSoftmax"],
            "predictor": ["Predictor"],
            "pyg": ["GNNTraining", "PyGTrainer", "RecommenderTraining", "Supervision"],
            "recommender": ["Recommender"],
            "rllib": ["RLlibTrainer"],
            "settings": ["EarlyStopping", "Scaling", "Schedule"],
            "table": ["Learned", "TableTrainer", "TrainResult"],
            "table_predictor": ["TableModel", "TablePredictor"],
            "tasks": ["LinkPrediction", "NodeClassification", "Recommendation"],
            "tensorflow": ["TensorFlowTrainer"],
            "torch": [
                "MAE",
                "MLP",
                "MSE",
                "CrossEntropy",
                "Huber",
                "ModelInputs",
                "Network",
                "Optimizer",
                "TorchTrainer",
            ],
            "trainer": ["Trainer"],
            "tuning": ["Domain", "Trial", "Tune", "TuneResult"],
            "two_tower": ["TwoTowerTrainer", "TwoTowerTraining"],
            "two_tower_recommender": ["TwoTowerRecommender"],
            "xgboost": ["XGBoostTrainer"],
        },
    )


def __dir__() -> list[str]:
    return sorted(__all__)
