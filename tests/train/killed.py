"""Trainings that kill themselves, run by `test_torch_kills.py` as processes of their own: `python killed.py CASE …`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sp_ray_ml.train import MLP, ModelInputs, PyGTrainer, Scaling, Schedule, TorchTrainer

NAME = "killed"


def table(rows: int = 601) -> pa.Table:
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 4))
    return pa.table({**{f"x{i}": x[:, i] for i in range(4)}, "y": x[:, 0] * 20 + random.normal(size=rows)})


def _count_down(module: Any) -> None:
    """At the given step kill this process, the first time that any comes to it, or wait there to be killed."""
    if module.training and module.steps:
        module.left -= 1
        if module.left == 0:
            if module.waits:
                time.sleep(600)
                raise TimeoutError("not killed in ten minutes")
            try:
                os.close(os.open(module.marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


class Dies(torch.nn.Module):
    """A small network with dropout, whose process dies at a step unless `marker` is there, or waits there."""

    def __init__(self, inputs: ModelInputs, marker: str, steps: int, waits: bool = False) -> None:
        super().__init__()
        self.marker, self.steps, self.left, self.waits = marker, steps, steps, waits
        self.first, self.last = torch.nn.Linear(inputs.width, 16), torch.nn.Linear(16, inputs.outputs)
        self.dropout = torch.nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _count_down(self)
        found: torch.Tensor = self.last(self.dropout(torch.relu(self.first(x))))
        return found


class DiesOnGraph(torch.nn.Module):
    """Matrix factorization with dropout, whose process dies as `Dies` does."""

    def __init__(self, data: Any, marker: str, steps: int, waits: bool = False) -> None:
        super().__init__()
        self.marker, self.steps, self.left, self.waits = marker, steps, steps, waits
        self.user = torch.nn.Parameter(torch.randn(data["user"].num_nodes, 8) * 0.1)
        self.item = torch.nn.Parameter(torch.randn(data["item"].num_nodes, 8) * 0.1)

    def forward(self, data: Any) -> dict[str, torch.Tensor]:
        _count_down(self)
        drop = torch.nn.functional.dropout
        return {"user": drop(self.user, 0.3, self.training), "item": drop(self.item, 0.3, self.training)}


def torch_trainer(
    workers: int, marker: Path, steps: int, waits: bool = False, max_failures: int = 0
) -> TorchTrainer:
    # 601 rows in batches of 50 are 13 steps an epoch, and one row in the last one: of two workers one has none.
    model = {"kind": f"{NAME}:Dies", "marker": str(marker), "steps": steps, "waits": waits}
    scaling = Scaling(workers=workers, max_failures=max_failures)
    return TorchTrainer(
        label="y",
        model=model,
        epochs=4,
        batch_size=50,
        checkpoint_steps=5,
        schedule=Schedule(kind="cosine"),
        scaling=scaling,
    )


def pyg_trainer(
    workers: int, marker: Path, steps: int, waits: bool = False, max_failures: int = 0
) -> PyGTrainer:
    # 80 users in batches of 10 are 8 steps an epoch.
    model = {"kind": f"{NAME}:DiesOnGraph", "marker": str(marker), "steps": steps, "waits": waits}
    scaling = Scaling(workers=workers, max_failures=max_failures)
    return PyGTrainer(
        model=model,
        epochs=4,
        batch_size=10,
        checkpoint_steps=3,
        cold_start=0.0,
        refit=False,
        early_stopping=None,
        scaling=scaling,
    )


def mlp_trainer(workers: int) -> TorchTrainer:
    scaling = Scaling(workers=workers)
    return TorchTrainer(label="y", model=MLP(hidden=[16]), epochs=4, batch_size=50, scaling=scaling)


def fit(
    kind: str, workers: int, folder: Path, marker: Path, *, steps: int, waits: bool, failures: int, die: int
) -> Any:
    """Train; the process that asked for it dies when it hears of epoch `die`.

    Returns:
        The result, and what it heard of the epochs.
    """
    heard: list[Mapping[str, float]] = []

    def on_epoch(metrics: Mapping[str, float]) -> None:
        heard.append(metrics)
        if die and metrics["epoch"] == die:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "mlp":
        result: Any = mlp_trainer(workers).fit(table(), folder=folder, on_epoch=on_epoch)
    elif kind == "torch":
        chosen = torch_trainer(workers, marker, steps, waits, failures)
        result = chosen.fit(table(), folder=folder, on_epoch=on_epoch)
    else:
        from conftest import make_world

        world = make_world()
        graph = pyg_trainer(workers, marker, steps, waits, failures)
        result = graph.fit(world.train, world.validation, folder=folder, on_epoch=on_epoch)
    return result, heard


def main() -> None:
    asked = json.loads(sys.argv[1])
    folder, marker = Path(asked["folder"]), Path(asked["marker"])
    if asked["workers"]:
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    result, heard = fit(
        asked["kind"],
        asked["workers"],
        folder,
        marker,
        steps=asked.get("steps", 0),
        waits=asked.get("waits", False),
        failures=asked.get("failures", 0),
        die=asked.get("die", 0),
    )
    if asked["kind"] == "pyg":
        found = {"user": result.user_vectors, "item": result.item_vectors, "bias": result.item_bias}
    else:
        found = {
            name: tensor.numpy() for name, tensor in result.predictor().model.network.state_dict().items()
        }
    np.savez(asked["to"], **found)
    print(json.dumps({"heard": heard, "losses": [h["loss"] for h in result.history]}))


if __name__ == "__main__":
    # Workers and manifests find the models by import path, as those of a user's project.
    import killed

    killed.main()
