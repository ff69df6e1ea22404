"""Boosted trees in two Ray workers with a checkpoint every ten rounds, beside Ray's own `XGBoostTrainer`."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "ray_workers"
PARAMS = {
    "objective": "binary:logistic", "tree_method": "hist", "eval_metric": "logloss",
    "eta": 0.1, "max_depth": 6, "nthread": 1, "seed": 0,
}  # fmt: skip


def main(quick: bool) -> dict[str, object]:
    """Fit by both in turns, each from the Parquet file to the model, in a Ray that is there already.

    Ray's is the example of its documentation: a `DMatrix` of each worker's shard, `xgboost.train`, and
    `RayTrainReportCallback(frequency=10)`. Both report the metric of every round.

    Args:
        quick: 10 rounds of few rows, once, instead of 30, three times.
    """
    rows, rounds, repeats = (20_000, 10, 1) if quick else (200_000, 30, 3)
    took: dict[str, list[float]] = {"ours": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), rows)
        _start_ray()
        for turn in range(repeats):
            for name in ("ours", "ray") if turn % 2 == 0 else ("ray", "ours"):
                began = time.perf_counter()
                loss = (_ours if name == "ours" else _rays)(Path(folder), rounds, turn)
                took[name].append(time.perf_counter() - began)
                print(f"{name}: {rounds} rounds in {took[name][-1]:.1f} s, log loss {loss:.5f}", flush=True)
    ratio = statistics.median(a / b for a, b in zip(took["ours"], took["ray"], strict=True))
    return {
        "name": NAME,
        "ours": round(statistics.median(took["ours"]), 1),
        "peer": round(statistics.median(took["ray"]), 1),
        "unit": "s",
        "ratio": round(ratio, 3),
        "target": 1.0,
        "holds": ratio <= 1.0,
    }


def _write(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 20)).astype(np.float32)
    odds = x[:, 0] * x[:, 1] + x[:, 2] - np.abs(x[:, 3]) + random.normal(size=rows)
    table = pa.table({f"x{i}": x[:, i] for i in range(20)} | {"label": (odds > 0).astype(np.int8)})
    for name, part in (("train", table.slice(0, rows * 4 // 5)), ("validation", table.slice(rows * 4 // 5))):
        (folder / name).mkdir()
        for half in range(2):  # a file for each worker
            size = len(part) // 2
            pq.write_table(part.slice(half * size, size), folder / name / f"{half}.parquet")


def _start_ray() -> None:
    import ray

    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _ours(folder: Path, rounds: int, turn: int) -> float:
    from sp_ray_ml.train import Scaling, XGBoostTrainer

    trainer = XGBoostTrainer(
        label="label", num_boost_round=rounds, early_stopping=None, learning_rate=PARAMS["eta"],
        max_depth=PARAMS["max_depth"], scaling=Scaling(workers=2),
    )  # fmt: skip
    result = trainer.fit(
        folder / "train", folder / "validation", folder=folder / f"ours-{turn}", on_epoch=_ignore
    )
    return float(result.metrics["log_loss"])


def _ignore(_: object) -> None:
    """A line each round would be printed otherwise."""


def _rays(folder: Path, rounds: int, turn: int) -> float:
    import ray.data
    import ray.train
    from ray.train.xgboost import XGBoostTrainer

    parts = {name: ray.data.read_parquet(str(folder / name)) for name in ("train", "validation")}
    trainer = XGBoostTrainer(
        _loop,
        train_loop_config={"rounds": rounds},
        datasets=parts,
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(folder / "ray"), name=f"turn-{turn}"),
    )
    metrics = trainer.fit().metrics
    assert metrics is not None
    return float(metrics["validation-logloss"])


def _loop(config: dict[str, Any]) -> None:
    import ray.train
    import xgboost
    from ray.train.xgboost import RayTrainReportCallback

    matrices = {}
    for name in ("train", "validation"):
        rows = ray.train.get_dataset_shard(name).materialize().to_pandas()
        matrices[name] = xgboost.DMatrix(rows.drop(columns="label"), rows["label"])
    xgboost.train(
        PARAMS,
        matrices["train"],
        num_boost_round=config["rounds"],
        evals=[(matrix, name) for name, matrix in matrices.items()],
        callbacks=[RayTrainReportCallback(frequency=10)],
        verbose_eval=False,
    )
