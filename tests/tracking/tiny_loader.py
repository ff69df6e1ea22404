"""A loader module as `sp_ray_ml.train.mlflow_model` is one: opens a checkpoint folder, without pickle."""

import json
from pathlib import Path


class Tiny:
    def __init__(self, path):
        self.answer = json.loads((Path(path) / "tiny.json").read_text())["answer"]

    def predict(self, table, params=None):
        return [self.answer] * len(table)


def _load_pyfunc(path):
    return Tiny(path)
