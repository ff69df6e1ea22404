"""Boosted trees from a Parquet file, beside XGBoost's own `train` on an array that is in memory already."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "xgboost_files"
COLUMNS, ROUNDS = 40, 100
TARGET, MEMORY_TARGET, SAMPLED_TARGET = 1.05, 1.5, 1.1
DRAWN = {"subsample": 0.7, "colsample_bytree": 0.6}


def main(quick: bool) -> dict[str, object]:
    """Both as processes of their own, in turns: reading and training are timed, starting Python is not.

    The peer has its float32 array from a file of NumPy's and its training is `xgboost.train`, which also measures
    RMSE on the training rows each round, as ours does. The time that pyarrow takes to read the Parquet file is
    added to its time, and not to its memory.

    Args:
        quick: 100,000 rows and 10 rounds, once, instead of 2 million and 100, three times.
    """
    rows, rounds, repeats = (100_000, 10, 1) if quick else (2_000_000, ROUNDS, 3)
    # What NumPy's BLAS is told has no place in a comparison of XGBoost with itself.
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:

        def measure(what: str) -> dict[str, float]:
            command = [sys.executable, "-m", "benchmarks.xgboost_files", what, folder, str(rounds)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        subprocess.run([sys.executable, __file__, "make", folder, str(rows)], check=True, env=environment)
        kinds = ["read", "native", "ours", "native_drawn", "ours_drawn"]
        for number in range(repeats):
            for kind in kinds if number % 2 == 0 else kinds[::-1]:
                found.setdefault(kind, []).append(measure(kind))
            last = {kind: found[kind][-1] for kind in kinds}
            print(
                f"reading {last['read']['seconds']:.2f} s, native {last['native']['seconds']:.2f} s "
                f"(CPU {last['native']['cpu']:.1f} s, {last['native']['gib']:.2f} GiB), ours "
                f"{last['ours']['seconds']:.2f} s (CPU {last['ours']['cpu']:.1f} s, {last['ours']['gib']:.2f} GiB), "
                f"RMSE {last['native']['rmse']:.4f} and {last['ours']['rmse']:.4f}",
                flush=True,
            )

    def middle(kind: str, what: str) -> float:
        return statistics.median(entry[what] for entry in found[kind])

    peer = middle("native", "seconds") + middle("read", "seconds")
    ratio = middle("ours", "seconds") / peer
    cpu = middle("ours", "cpu") / (middle("native", "cpu") + middle("read", "cpu"))
    memory = middle("ours", "gib") / middle("native", "gib")
    print(f"CPU time: ratio {cpu:.3f} (tells a busy machine from a slow program)")
    print(
        f"peak memory: {middle('ours', 'gib'):.2f} GiB, native {middle('native', 'gib'):.2f} GiB, ratio {memory:.2f}, target {MEMORY_TARGET}"
    )
    drawn = statistics.median(
        ours["boosting"] / native["boosting"]
        for ours, native in zip(found["ours_drawn"], found["native_drawn"], strict=True)
    )
    print(
        f"boosting with subsample and colsample_bytree, each round seeded by its number: {middle('ours_drawn', 'boosting'):.2f} s, "
        f"native {middle('native_drawn', 'boosting'):.2f} s, ratio {drawn:.3f}, target {SAMPLED_TARGET}"
    )
    return {
        "name": NAME,
        "ours": round(middle("ours", "seconds"), 2),
        "peer": round(peer, 2),
        "unit": "s",
        "ratio": round(ratio, 3),
        "target": TARGET,
        "holds": ratio <= TARGET and memory <= MEMORY_TARGET and drawn <= SAMPLED_TARGET,
    }


def _make(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    x = random.standard_normal((rows, COLUMNS), dtype=np.float32)
    noise = random.standard_normal(rows, dtype=np.float32)
    y = x[:, 0] + x[:, 1] * x[:, 2] + np.sin(x[:, 3]) + noise
    columns = {f"x{i}": x[:, i].astype(np.float64) for i in range(COLUMNS)}
    pq.write_table(pa.table({**columns, "y": y.astype(np.float64)}), folder / "rows.parquet")
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)


def _read(folder: Path) -> dict[str, float]:
    import pyarrow.parquet as pq

    began, cpu = time.perf_counter(), time.process_time()
    pq.read_table(folder / "rows.parquet")
    return {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


def _native(folder: Path, rounds: int, params: dict[str, Any]) -> dict[str, float]:
    import numpy as np
    import xgboost

    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    began, cpu = time.perf_counter(), time.process_time()
    rows = xgboost.QuantileDMatrix(x, label=y)
    del x
    boosting = time.perf_counter()
    history: dict[str, Any] = {}
    xgboost.train(
        {"tree_method": "hist", **params}, rows, rounds, evals=[(rows, "train")], evals_result=history, verbose_eval=False
    )  # fmt: skip
    ended = time.perf_counter()
    return {
        "seconds": ended - began,
        "boosting": ended - boosting,
        "cpu": time.process_time() - cpu,
        "gib": _peak_gib(),
        "rmse": history["train"]["rmse"][-1],
    }


def _ours(folder: Path, rounds: int, params: dict[str, Any]) -> dict[str, float]:
    # As the peer, the libraries that both need are there when the clock starts.
    import pyarrow.parquet  # noqa: F401
    import xgboost  # noqa: F401

    from sp_ray_ml.train import (
        XGBoostTrainer,
        _xgboost_loop,  # noqa: F401
    )

    began, cpu = time.perf_counter(), time.process_time()
    result = XGBoostTrainer(label="y", num_boost_round=rounds, params=params).fit(
        folder / "rows.parquet", folder=tempfile.mkdtemp(dir=folder)
    )
    ended, used = time.perf_counter(), time.process_time() - cpu
    return {
        "seconds": ended - began,
        "boosting": sum(entry["seconds"] for entry in result.history),
        "cpu": used,
        "gib": _peak_gib(),
        "rmse": result.metrics["rmse"],
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    what, place, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "make":
        _make(place, number)
    elif what == "read":
        print(json.dumps(_read(place)))
    else:
        run = _native if what.startswith("native") else _ours
        print(json.dumps(run(place, number, DRAWN if what.endswith("drawn") else {})))
