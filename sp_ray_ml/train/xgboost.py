"""`XGBoostTrainer`: boosted trees on a table. Importing it imports no heavy library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pydantic

from sp_ray_ml.train.settings import EarlyStopping
from sp_ray_ml.train.table import Learned, OnEpoch, TableTrainer

if TYPE_CHECKING:
    from sp_ray_ml.train._table_data import TableData

__all__ = ["XGBoostTrainer"]


class XGBoostTrainer(TableTrainer):
    """Trains boosted trees on a table.

    Numbers go in as they are, missing ones included; categories as categories. The rows stream into XGBoost's own
    quantized matrix, on disk where they do not fit into `memory_limit`.
    """

    objective: str | None = None
    """XGBoost's `objective`; without, `reg:squarederror`, `binary:logistic` or `multi:softprob` by the label."""
    num_boost_round: int = pydantic.Field(default=100, ge=1)
    """Rounds of boosting, at most."""
    learning_rate: float = pydantic.Field(default=0.3, gt=0)
    """How much each round counts (`eta`)."""
    max_depth: int = pydantic.Field(default=6, ge=0)
    """Of each tree; 0 sets no limit."""
    max_bin: int = pydantic.Field(default=256, ge=2)
    """Buckets that each number is sorted into."""
    params: dict[str, Any] = pydantic.Field(default={})
    """More of XGBoost's parameters: `subsample`, `min_child_weight`, `reg_lambda`, ….

    What is drawn at random is drawn anew from `seed` and the number of the round, so that a training that was broken
    off goes on to the same trees."""
    early_stopping: EarlyStopping | None = EarlyStopping()
    """When to stop, by a metric of the validation rows; the best round is kept. None boosts for all rounds."""
    refit: bool | None = None
    """Boost again on the training and the validation rows together, for as many rounds as were kept. The metrics stay
    those of the first boosting, which had not seen the validation rows. Without, a pipeline does, which has split
    those rows off itself, and `fit` does not, which was given them. The trials of a tuning never do."""
    memory_limit: int | None = pydantic.Field(default=None, ge=1)
    """Bytes that the encoded rows may take (4 a number); what is larger stays on disk. Without, half of what is free."""

    _scale: ClassVar[bool] = False

    @property
    def one_hot(self) -> bool:
        """Trees split categories themselves."""
        return False

    @property
    def _keep(self) -> int:
        return 0 if self.scaling.workers else self.row_memory

    @property
    def row_memory(self) -> int:
        """How many bytes of encoded rows are kept in memory."""
        from sp_ray_ml.train._memory import available_memory

        return self.memory_limit or available_memory() // 2

    @pydantic.field_validator("params")
    @classmethod
    def _has_no_setting_of_its_own(cls, params: dict[str, Any]) -> dict[str, Any]:
        own = {
            "objective": "objective",
            "eta": "learning_rate",
            "learning_rate": "learning_rate",
            "max_depth": "max_depth",
            "max_bin": "max_bin",
            "num_boost_round": "num_boost_round",
            "n_estimators": "num_boost_round",
            "num_class": "label",
        }
        if taken := [name for name in params if name in own]:
            raise ValueError(f"{taken[0]} is the setting `{own[taken[0]]}`")
        if given := [name for name in ("seed", "random_state", "seed_per_iteration") if name in params]:
            raise ValueError(f"{given[0]} comes from `seed`")
        if fixed := [name for name in ("updater", "process_type") if name in params]:
            raise ValueError(
                f"{fixed[0]} cannot be set: a training that was broken off would not go on exactly"
            )
        if params.get("booster", "gbtree") not in {"gbtree", "dart"}:
            raise ValueError("booster must be gbtree or dart, which grow trees")
        if params.get("tree_method", "hist") != "hist":
            raise ValueError("tree_method must be hist, the one that rows can stream into")
        return params

    def _on_a_split(self) -> XGBoostTrainer:
        return self if self.refit is not None else self.model_copy(update={"refit": True})

    def learn(self, data: TableData, *, seed: int, folder: Path, on_epoch: OnEpoch) -> Learned:
        """See `TableTrainer.learn`."""
        from sp_ray_ml.train._xgboost_loop import learn

        return learn(self, data, seed=seed, folder=folder, on_epoch=on_epoch)
