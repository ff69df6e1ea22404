"""Quality of examples/movielens.yaml on the test events, mean of 5 seeds, beside EASE on the same split."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._silent import Silent

NAME = "movielens"
CONFIG = Path(__file__).parents[1] / "examples" / "movielens.yaml"


def main(quick: bool) -> dict[str, object]:
    """Run the example as it stands, once a seed.

    Args:
        quick: One seed.
    """
    if not os.environ.get("MOVIELENS"):
        raise SystemExit(
            "error: MOVIELENS names no folder with MovieLens 100K. Run: export MOVIELENS=/path/to/it"
        )
    import sp_ray_ml

    os.environ["MOVIELENS"] = str(Path(os.environ["MOVIELENS"]).resolve())
    recall, ndcg, seconds = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1 if quick else 5):
            began = time.perf_counter()
            result = sp_ray_ml.run(
                CONFIG,
                overrides=[
                    f"seed={seed}",
                    f"runs={folder}/runs-{seed}",
                    f"predict.output.warehouse=duckdb:///{folder}/out-{seed}.duckdb",
                ],
                reporter=Silent(),
            )
            seconds.append(time.perf_counter() - began)
            recall.append(result.metrics["recall@20"])
            ndcg.append(result.metrics["ndcg@20"])
            epochs = next(step.summary["epochs"] for step in result.steps if step.name == "train")
            print(
                f"seed {seed}: recall@20 {recall[-1]:.4f}, ndcg@20 {ndcg[-1]:.4f}, {epochs} epochs, {seconds[-1]:.0f} s",
                flush=True,
            )
    for name, row in result.baselines.items():
        print(f"{name}: recall@20 {row['recall@20']:.4f}, ndcg@20 {row['ndcg@20']:.4f}")
    ours, peer = statistics.mean(recall), float(result.baselines["ease"]["recall@20"])
    print(
        f"mean of {len(recall)}: recall@20 {ours:.4f}, ndcg@20 {statistics.mean(ndcg):.4f}, "
        f"median {statistics.median(seconds):.0f} s a run"
    )
    return {
        "name": NAME,
        "ours": round(ours, 4),
        "peer": round(peer, 4),
        "unit": "recall@20",
        "ratio": round(ours / peer, 3),
        "target": 1.0,
        "holds": ours >= peer,
    }
