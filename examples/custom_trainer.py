"""A fifth framework in 60 lines: linear models of scikit-learn as a trainer like the others.

Run it as it is, or name it in a config: `train: {kind: "custom_trainer:LinearTrainer", label: income, c: 0.5}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pydantic
from safetensors.numpy import load_file, save_file

from sp_ray_ml.train import Learned, TableModel, TableTrainer
from sp_ray_ml.train.table_predictor import padded_scores


class LinearModel(TableModel):
    """Scores x·W + b, for classes as probabilities."""

    kind = "linear"

    def __init__(self, weights: np.ndarray, bias: np.ndarray) -> None:
        self.weights, self.bias = weights, bias

    def scores(self, x: np.ndarray) -> np.ndarray:
        scores = x @ self.weights + self.bias
        if scores.shape[1] == 1:
            return scores
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def save(self, folder: Path) -> None:
        save_file({"weights": self.weights, "bias": self.bias}, folder / "model.safetensors")

    @classmethod
    def open(cls, folder: Path, spec: Any, about: Mapping[str, Any]) -> Self:
        return cls(**load_file(folder / "model.safetensors"))


class LinearTrainer(TableTrainer):
    """Ridge regression, or logistic regression for classes."""

    c: float = pydantic.Field(default=1.0, gt=0)
    """The inverse of how strongly weights are held near zero."""

    def learn(self, data: Any, *, seed: int, folder: Path, on_epoch: Any) -> Learned:
        from sklearn.linear_model import LogisticRegression, Ridge

        rows, target = data.arrays("train"), data.spec.target
        fitted = (
            Ridge(1 / self.c) if target.task == "regression" else LogisticRegression(C=self.c, max_iter=1_000)
        )
        fitted.fit(rows.x, rows.y, sample_weight=rows.weight)
        weights, bias = np.atleast_2d(fitted.coef_).T, np.atleast_1d(fitted.intercept_)
        if target.outputs == 2:  # scikit-learn keeps one column for two classes
            weights, bias = np.hstack([0 * weights, weights]), np.hstack([0 * bias, bias])
        model = LinearModel(np.ascontiguousarray(weights, np.float32), bias.astype(np.float32))
        held_out = data.arrays("validation")
        scores = None if held_out is None else padded_scores(model, held_out.x)
        on_epoch({"epoch": 1})
        return Learned(model, [{"epoch": 1}], scores)


if __name__ == "__main__":
    import pyarrow as pa
    from sklearn.datasets import load_breast_cancer

    table = pa.Table.from_pandas(load_breast_cancer(as_frame=True).frame)
    result = LinearTrainer(label="target").fit(table.slice(0, 400), table.slice(400))
    print({name: round(value, 4) for name, value in result.metrics.items()})
    print(result.predictor().predict(table.slice(400, 3)).select(["target", "prediction", "probability"]))
