"""Peak memory of measuring 100 million recommendations and 100 million probabilities, beside a limit of 4 GiB."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME = "evaluation_memory"
LIMIT_GIB = 4.0
K, ITEMS = 20, 100_000


def main(quick: bool) -> dict[str, object]:
    """Write the tables as Parquet, then measure each in a process of its own; some 3 GiB of disk are needed.

    Users' ids are spread over 64 bits, so that they go through the table of ids as text would.

    Args:
        quick: 2 million rows of each instead.
    """
    rows = 2_000_000 if quick else 100_000_000
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "write", folder, str(rows)], check=True)
        for what in ("lists", "rows"):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, __file__, what, folder], check=True, stdout=subprocess.PIPE, text=True
            )
            seconds = time.perf_counter() - began
            found, peak = done.stdout.splitlines()
            peaks.append(float(peak))
            print(f"{rows:,} {what}: {seconds:.0f} s, peak {float(peak):.2f} GiB; {found}")
    from benchmarks._result import within  # the children run this file by its path, and have no package

    return within(NAME, max(peaks), LIMIT_GIB, "GiB", digits=2)


def _write(folder: Path, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    users, chunk = rows // K, 200_000
    random = np.random.default_rng(0)
    writers: dict[str, pq.ParquetWriter] = {}

    def write(name: str, table: pa.Table) -> None:
        if name not in writers:
            writers[name] = pq.ParquetWriter(folder / f"{name}.parquet", table.schema, compression="zstd")
        writers[name].write_table(table, row_group_size=1 << 20)

    for begin in range(0, users, chunk):
        count = min(chunk, users - begin)
        ids = (np.arange(begin, begin + count) * 2_654_435_761) % (1 << 52) + (1 << 52)
        # Distinct items by steps that share no factor with their number.
        start, step = (
            random.integers(0, ITEMS, (count, 1)),
            random.integers(1, ITEMS // 100, (count, 1)) * 10 + 1,
        )
        items = (start + step * np.arange(K)) % ITEMS
        write(
            "predictions",
            pa.table(
                {
                    "user_id": np.repeat(ids, K),
                    "rank": np.tile(np.arange(1, K + 1, dtype=np.int32), count),
                    "item_id": items.reshape(-1).astype(np.int32),
                }
            ),
        )
        own = items[np.arange(count), random.integers(0, K, count)]
        write("truth", pa.table({"user_id": ids, "item_id": own.astype(np.int32)}))
        truth = random.random(count * K) < 0.3
        score = 1 / (1 + np.exp(-random.normal(truth * 1.0 - 1, 1)))
        write("rows", pa.table({"truth": truth, "probability": score.astype(np.float32)}))
    for writer in writers.values():
        writer.close()


def _measure(what: str, folder: Path) -> str:
    from sp_ray_ml.inference import Classification, Ranking, evaluate_predictions

    if what == "rows":
        found = evaluate_predictions(folder / "rows.parquet", Classification())
        return f"AUC {found.metrics['auc']:.4f}"
    settings = Ranking(k=[10, K])
    found = evaluate_predictions(folder / "predictions.parquet", settings, truth=folder / "truth.parquet")
    assert found.metrics[f"recall@{K}"] == 1.0
    return f"NDCG@{K} {found.metrics[f'ndcg@{K}']:.4f}"


if __name__ == "__main__":
    if sys.argv[1] == "write":
        _write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        print(_measure(sys.argv[1], Path(sys.argv[2])))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
