"""A trained XGBoost model, kept as UBJSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sp_ray_ml.errors import CheckpointError
from sp_ray_ml.train._ubjson import check_ubjson
from sp_ray_ml.train.table_predictor import TableModel

if TYPE_CHECKING:
    import xgboost
    from numpy.typing import NDArray

    from sp_ray_ml.train._table_spec import TableSpec

__all__ = ["XGBoostModel", "as_scores"]

_FILE = "model.ubj"


class XGBoostModel(TableModel):
    """A booster. Each row goes through the trees by itself, so a batch's size changes nothing.

    Attributes:
        booster: XGBoost's own.
    """

    kind = "xgboost"
    batch_rows = None

    def __init__(self, booster: xgboost.Booster, classes: int) -> None:
        self.booster = booster
        self._classes = classes

    def scores(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [rows, 1] or [rows, classes]."""
        found = self.booster.inplace_predict(x, missing=np.nan, validate_features=False)
        return as_scores(found, self._classes)

    def save(self, folder: Path) -> None:
        """Write `model.ubj`."""
        (folder / _FILE).write_bytes(self.booster.save_raw("ubj"))

    @classmethod
    def open(cls, folder: Path, spec: TableSpec, about: Mapping[str, Any]) -> XGBoostModel:  # noqa: ARG003
        """Open `model.ubj`."""
        import xgboost

        content = (folder / _FILE).read_bytes()
        booster = xgboost.Booster()
        try:
            # First ours: of what is no whole model file XGBoost does not complain, it ends the process.
            if "learner" not in check_ubjson(content):
                raise ValueError("it has no learner")
            booster.load_model(bytearray(content))
            features = booster.num_features()
        except (xgboost.core.XGBoostError, ValueError) as error:
            raise CheckpointError(
                f"{_FILE} is no XGBoost model: {str(error).strip().splitlines()[-1]}", where=str(folder)
            ) from None
        if features != spec.width:
            raise CheckpointError(
                f"{_FILE} takes {features} columns, the preprocessors give {spec.width}", where=str(folder)
            )
        return cls(booster, len(spec.target.classes))


def as_scores(found: NDArray[Any], classes: int) -> NDArray[np.float32]:
    """What XGBoost predicts as a model's scores: float32 [rows, 1] or [rows, classes]."""
    found = np.asarray(found, np.float32)
    if classes == 2 and found.ndim == 1:
        return np.stack([1 - found, found], axis=1)
    return found.reshape(len(found), -1)
