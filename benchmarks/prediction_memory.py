"""Peak memory of recommending from 100,000 items to 1 million users into DuckDB, beside a limit of 4 GiB."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME = "prediction_memory"
LIMIT_GIB = 4.0
DIM, SEEN, K = 64, 20, 20


def main(quick: bool) -> dict[str, object]:
    """Seal a predictor, then run the pipeline's own steps predict and write in a process that does nothing else.

    Args:
        quick: 20,000 users by 20,000 items instead.
    """
    users, items = (20_000, 20_000) if quick else (1_000_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        # Processes of their own: making the predictor takes memory that serving it does not.
        subprocess.run([sys.executable, __file__, "seal", folder, str(users), str(items)], check=True)
        command = [sys.executable, __file__, "predict", folder]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    print(
        f"{users:,} users by {items:,} items, {K} each: ranked in {measured['predict_s']:.1f} s "
        f"({users / measured['predict_s']:,.0f} users/s, peak {measured['predict_gib']:.2f} GiB), "
        f"{measured['rows']:,} rows written in {measured['write_s']:.1f} s"
    )
    peak = measured["peak_gib"]
    from benchmarks._result import within  # the children run this file by its path, and have no package

    return within(NAME, peak, LIMIT_GIB, "GiB", digits=3)


def _seal(folder: Path, users: int, items: int) -> None:
    """A predictor of random vectors, with ids and titles as text and what each user has seen."""
    import numpy as np
    import pyarrow as pa
    from scipy.sparse import csr_array

    from sp_ray_ml.train import Recommender

    rng = np.random.default_rng(0)
    history = rng.integers(0, items, (users, SEEN), dtype=np.int32)
    history.sort(axis=1)
    # A show that was drawn twice is one that the user has seen.
    new = np.diff(history, axis=1, prepend=-1) > 0
    ends = np.concatenate([[0], np.cumsum(new.sum(axis=1))]).astype(np.int32)
    seen = csr_array((np.ones(new.sum(), np.float32), history[new], ends), shape=(users, items))
    Recommender(
        users=pa.array([f"u{number:08}" for number in range(users)]),
        items=pa.array([f"show-{number:06}" for number in range(items)]),
        titles=pa.array([f"Stories of the day, number {number}" for number in range(items)]),
        user_vectors=rng.standard_normal((users, DIM), dtype=np.float32),
        item_vectors=rng.standard_normal((items, DIM), dtype=np.float32),
        item_bias=np.zeros(items, np.float32),
        seen=seen,
        columns=("user_id", "item_id"),
    ).save(folder / "predictor")


def _predict(folder: Path) -> dict[str, float]:
    import duckdb

    from sp_ray_ml._event_steps import predicting
    from sp_ray_ml._event_steps.training import load_recommender
    from sp_ray_ml._runs import StepContext
    from sp_ray_ml.data.warehouse import open_warehouse
    from sp_ray_ml.inference.settings import Output, Predict

    def context(name: str) -> StepContext:
        (folder / name).mkdir()
        return StepContext(folder / name, folder / name, progress=lambda *_: None, note=print)

    recommender = load_recommender(folder)
    url = f"duckdb:///{folder}/out.duckdb"
    settings = Predict(k=K, output=Output(warehouse=url, table="recommendations"))
    began = time.perf_counter()
    predicting.predict(context("predict"), recommender, open_warehouse(url), settings)
    predicted, predict_gib = time.perf_counter(), _peak_gib()
    predicting.write(context("write"), folder / "predict", recommender, settings, "benchmark")
    written = time.perf_counter()
    peak = _peak_gib()
    with duckdb.connect(f"{folder}/out.duckdb", read_only=True) as database:
        rows, per_user, best = database.sql(
            "SELECT count(*), count(*) / count(DISTINCT user_id), min(rank) FROM recommendations"
        ).fetchone()
    assert (rows, per_user, best) == (recommender.num_users * K, K, 1)
    return {
        "predict_s": predicted - began,
        "write_s": written - predicted,
        "rows": rows,
        "predict_gib": predict_gib,
        "peak_gib": peak,
    }


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    if sys.argv[1] == "seal":
        _seal(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    else:
        print(json.dumps(_predict(Path(sys.argv[2]))))
