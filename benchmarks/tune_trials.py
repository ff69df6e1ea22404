"""What tuning costs: XGBoost trials, two at a time, beside the same fits in a pool of two processes."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "tune_trials"
_shared: dict[str, Any] = {}


def main(quick: bool) -> dict[str, object]:
    """Run both in turns. Ray is started before, and the pool's processes count with the pool as Tune's do with Tune.

    Args:
        quick: 4 short trials instead of 20 of about 5 s, once.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # as Ray does for a trial that has one CPU
    trials, rows, repeats = (4, 20_000, 1) if quick else (20, 400_000, 3)
    ours: list[float] = []
    peer: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train, validation = _tables(rows)
        _start_ray()
        fits = _fits(trials)
        for turn in range(repeats):
            for name in ("ours", "peer") if turn % 2 == 0 else ("peer", "ours"):
                began = time.perf_counter()
                best = (_tune if name == "ours" else _pool)(
                    train, validation, fits, Path(folder) / f"{name}-{turn}"
                )
                took = time.perf_counter() - began
                (ours if name == "ours" else peer).append(took)
                print(f"{name}: {trials} trials in {took:.1f} s, best log loss {best:.5f}", flush=True)
    ratio = statistics.median(a / b for a, b in zip(ours, peer, strict=True))
    return {
        "name": NAME,
        "ours": round(statistics.median(ours), 1),
        "peer": round(statistics.median(peer), 1),
        "unit": "s",
        "ratio": round(ratio, 3),
        "target": 1.25,
        "holds": ratio <= 1.25,
    }


def _tables(rows: int) -> tuple[Any, Any]:
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 20)).astype(np.float32)
    odds = x[:, 0] * x[:, 1] + x[:, 2] - np.abs(x[:, 3]) + random.normal(size=rows)
    table = pa.table({f"x{i}": x[:, i] for i in range(20)} | {"label": (odds > 0).astype(np.int8)})
    return table.slice(0, rows * 4 // 5), table.slice(rows * 4 // 5)


def _space() -> Any:
    from sp_ray_ml.train import Tune

    return Tune(
        space={
            "learning_rate": {"loguniform": [0.05, 0.3]},
            "params.subsample": {"uniform": [0.6, 1.0]},
            "params.min_child_weight": {"loguniform": [1, 20]},
        },
        max_concurrent=2,
    )


def _trainer() -> Any:
    from sp_ray_ml.train import XGBoostTrainer

    return XGBoostTrainer(label="label", num_boost_round=100, early_stopping=None)


def _fits(trials: int) -> list[dict[str, Any]]:
    """The values that the search tries, so that the pool fits the same."""
    from sp_ray_ml.train._tune_search import search_of

    search = search_of(_space(), 0)
    return [search.propose(number) for number in range(1, trials + 1)]


def _start_ray() -> None:
    import ray

    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def _tune(train: Any, validation: Any, fits: list[dict[str, Any]], folder: Path) -> float:
    settings = _space().model_copy(update={"trials": len(fits)})
    result = _trainer().tune(train, validation, tune=settings, seed=0, folder=folder, on_trial=_ignore)
    assert [dict(trial.params) for trial in result.trials] == fits
    return float(result.metrics["log_loss"])


def _ignore(trial: object) -> None:
    """A table would be printed otherwise."""


def _pool(train: Any, validation: Any, fits: list[dict[str, Any]], folder: Path) -> float:
    """Two processes that map the rows from one file."""
    import pyarrow as pa

    folder.mkdir()
    for name, table in (("train", train), ("validation", validation)):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, initializer=_open, initargs=(folder,)) as pool:
        return min(pool.imap_unordered(_fit, list(enumerate(fits))))


def _open(folder: Path) -> None:
    import pyarrow as pa

    _shared["folder"] = folder
    for name in ("train", "validation"):
        _shared[name] = pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all()


def _fit(job: tuple[int, dict[str, Any]]) -> float:
    from sp_ray_ml.train.tuning import with_settings

    number, values = job
    trainer: Any = with_settings(_trainer(), values)
    result = trainer.fit(
        _shared["train"], _shared["validation"], seed=0, folder=_shared["folder"] / f"fit-{number}"
    )
    return float(result.metrics["log_loss"])
