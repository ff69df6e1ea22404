"""What all trainers share. Importing it imports no heavy library."""

from __future__ import annotations

from typing import Annotated

from sp_ray_ml.config import Family, Settings
from sp_ray_ml.train.settings import Scaling

__all__ = ["Trainer", "TrainerField"]


class Trainer(Settings):
    """Base of the trainers: settings with a `fit`."""

    scaling: Scaling = Scaling()
    """Where training runs."""


TrainerField = Annotated[
    Trainer,
    Family(
        "trainer",
        {
            "pyg": "sp_ray_ml.train.pyg:PyGTrainer",
            "xgboost": "sp_ray_ml.train.xgboost:XGBoostTrainer",
        },
        default="pyg",
    ),
]
