"""The loader module by which MLflow opens a sealed predictor: `mlflow.pyfunc.load_model`, `mlflow models serve`."""

from __future__ import annotations

from typing import Any

from sp_ray_ml.train.predictor import Predictor

__all__: list[str] = []


class _PyfuncModel:
    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:  # noqa: ARG002
        import pyarrow as pa

        return self.predictor.predict(pa.Table.from_pandas(model_input, preserve_index=False)).to_pandas()


def _load_pyfunc(path: str) -> _PyfuncModel:
    return _PyfuncModel(Predictor.load(path))
