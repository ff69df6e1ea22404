"""Peak memory of ranking 100,000 items for 1 million users into a Parquet file, beside a limit of 4 GiB."""

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
    """Run in a process of its own, so that nothing but the prediction counts; print speed, return the peak.

    Args:
        quick: 20,000 users by 20,000 items instead.
    """
    users, items = (20_000, 20_000) if quick else (1_000_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(users), str(items), str(Path(folder) / "ranked.parquet")]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    print(
        f"{users:,} users by {items:,} items, {K} each: {measured['seconds']:.1f} s, "
        f"{users / measured['seconds']:,.0f} users/s, {measured['rows'] / measured['seconds']:,.0f} rows/s, "
        f"inputs {measured['inputs_gib']:.2f} GiB, file {measured['file_gib']:.2f} GiB"
    )
    peak = measured["peak_gib"]
    return {
        "name": NAME,
        "ours": round(peak, 3),
        "peer": LIMIT_GIB,
        "unit": "GiB",
        "ratio": round(peak / LIMIT_GIB, 3),
        "target": 1.0,
        "holds": peak <= LIMIT_GIB,
    }


def _measure(users: int, items: int, path: str) -> dict[str, float]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from scipy.sparse import csr_array

    from sp_ray_ml.metrics.rank import rank

    rng = np.random.default_rng(0)

    class Embeddings:
        num_items = items
        user_vectors = rng.standard_normal((users, DIM), dtype=np.float32)
        item_vectors = rng.standard_normal((items, DIM), dtype=np.float32)

        def score(self, index: np.ndarray) -> np.ndarray:
            return self.user_vectors[index] @ self.item_vectors.T

    model = Embeddings()
    history = rng.integers(0, items, (users, SEEN), dtype=np.int32)
    history.sort(axis=1)
    seen = csr_array(
        (np.ones(history.size, np.int8), history.ravel(), np.arange(users + 1, dtype=np.int32) * SEEN),
        shape=(users, items),
    )
    inputs = model.user_vectors.nbytes + model.item_vectors.nbytes + seen.indices.nbytes + seen.data.nbytes

    start, rows = time.perf_counter(), 0
    schema = pa.schema({"user": pa.int64(), "rank": pa.int32(), "item": pa.int32(), "score": pa.float32()})
    with pq.ParquetWriter(path, schema) as writer:
        for index, best, scores in rank(model, np.arange(users), K, seen):
            found = best >= 0
            row, place = np.nonzero(found)
            columns = [index[row], (place + 1).astype(np.int32), best[found], scores[found]]
            writer.write_batch(pa.record_batch([pa.array(column) for column in columns], schema=schema))
            rows += len(row)
    return {
        "seconds": time.perf_counter() - start,
        "rows": rows,
        "inputs_gib": inputs / 2**30,
        "file_gib": Path(path).stat().st_size / 2**30,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
    else:
        print(json.dumps(main("--quick" in sys.argv[1:])))
