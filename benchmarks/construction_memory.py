"""Peak memory of constructing a graph of 100 million events with text ids, beside a limit of 4 GiB."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAME = "construction_memory"
LIMIT_GIB = 4.0


def main(quick: bool) -> dict[str, object]:
    """Write the events as Parquet, then construct their graph in a process that does nothing else.

    Five million users, drawn uniformly, 500,000 items, drawn as `rand()**2`.

    Args:
        quick: 2 million events.
    """
    events = 2_000_000 if quick else 100_000_000
    with tempfile.TemporaryDirectory() as folder:
        # Processes of their own: making the events takes memory that reading them does not.
        subprocess.run([sys.executable, __file__, "events", folder, str(events)], check=True)
        command = [sys.executable, __file__, "construct", folder]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(run.stdout.splitlines()[-1])
    peak = measured["peak_gib"]
    print(
        f"{events:,} events, {measured['nodes']:,} nodes, {measured['edges']:,} edges: {measured['seconds']:.0f} s, "
        f"peak {peak:.2f} GiB, {measured['disk_gb']:.1f} GB on disk"
    )
    from benchmarks._result import within  # the children run this file by its path, and have no package

    return within(NAME, peak, LIMIT_GIB, "GiB", digits=3)


def _write(folder: Path, events: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    users = pa.array([f"user-{number:08x}" for number in rng.permutation(events // 20)])
    items = pa.array([f"item-{number:06}" for number in rng.permutation(events // 200)])
    rows = min(events, 1_000_000)
    writer = None
    for begin in range(0, events, rows):
        table = pa.table(
            {
                "user": users.take(pa.array((rng.random(rows) * len(users)).astype(np.int64))),
                "item": items.take(pa.array((rng.random(rows) ** 2 * len(items)).astype(np.int64))),
                "time": np.sort(rng.integers(begin, begin + rows, rows)).astype("datetime64[s]"),
            }
        )
        writer = writer or pq.ParquetWriter(folder / "events.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _construct(folder: Path) -> dict[str, float]:
    from sp_ray_ml.graph import EdgeTable, construct_graph

    table = EdgeTable(table=folder / "events.parquet", source="user", destination="item", time="time")
    begin, began = time.perf_counter(), time.process_time()
    graph = construct_graph(folder / "graph", {("user", "to", "item"): table})
    seconds, cpu = time.perf_counter() - begin, time.process_time() - began
    return {
        "seconds": seconds,
        "cpu": cpu,
        "nodes": sum(graph.num_nodes.values()),
        "edges": graph.edges["user", "to", "item"].num_edges,
        "disk_gb": sum(file.stat().st_size for file in (folder / "graph").iterdir()) / 1e9,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    if sys.argv[1] == "events":
        _write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        print(json.dumps(_construct(Path(sys.argv[2]))))
